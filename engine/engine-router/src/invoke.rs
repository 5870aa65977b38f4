//! Calls: to whom they go, and how their answers come back.

use engine_protocol::{Action, ErrorBody, InvocationResult, InvokeFunction, Message, with_caller};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::router::{ConnId, Pending, Router};

impl Router {
    pub(crate) fn invoke(&mut self, conn: ConnId, call: InvokeFunction) {
        let InvokeFunction { invocation_id, function_id, data, traceparent, baggage, action, metadata } = call;
        let answer_to = match action {
            Some(Action::Enqueue { queue }) => {
                let message = format!("queue `{queue}`: the queue worker is not part of this version");
                return self.answer(conn, invocation_id, &function_id, Err(ErrorBody::new("enqueue_error", message)));
            }
            Some(Action::Void) => None,
            None => invocation_id,
        };
        let Some(caller) = self.connections.get(&conn).map(|connection| connection.worker.to_string()) else { return };
        if let Some(refusal) = self.refuse_call(conn, &function_id) {
            return self.answer(conn, answer_to, &function_id, Err(refusal));
        }
        if function_id.starts_with("engine::") {
            return self.builtin(conn, answer_to, &function_id, data.as_deref());
        }
        let data = match data.map(|data| with_caller(data, &caller)).transpose() {
            Ok(data) => data,
            Err(error) => {
                let error = ErrorBody::new("serialization_error", error.to_string());
                return self.answer(conn, answer_to, &function_id, Err(error));
            }
        };
        let forwarded =
            InvokeFunction { invocation_id: None, function_id, data, traceparent, baggage, action: None, metadata };
        self.dispatch(answer_to.map(|id| (conn, id)), forwarded);
    }

    /// A call of the engine's own: nobody waits for its answer.
    pub(crate) fn call(&mut self, function_id: &str, data: Box<RawValue>) {
        let call = InvokeFunction {
            invocation_id: None,
            function_id: function_id.to_owned(),
            data: Some(data),
            traceparent: None,
            baggage: None,
            action: None,
            metadata: None,
        };
        self.dispatch(None, call);
    }

    fn dispatch(&mut self, caller: Option<(ConnId, Uuid)>, mut call: InvokeFunction) {
        let provider = self.functions.get(&call.function_id).and_then(|providers| providers.last());
        let Some(executor) = provider.map(|provider| provider.conn) else {
            if let Some((conn, id)) = caller {
                let message = format!("function `{}` is not registered", call.function_id);
                let error = ErrorBody::new("function_not_found", message);
                self.answer(conn, Some(id), &call.function_id, Err(error));
            }
            return;
        };
        // The caller's id names the call all the way, unless another caller uses the same one at the moment.
        let id = match caller {
            Some((_, id)) if !self.pending.contains_key(&id) => id,
            _ => self.fresh_id(),
        };
        call.invocation_id = Some(id);
        self.pending.insert(id, Pending { executor, caller, function_id: call.function_id.clone() });
        self.send(executor, Message::InvokeFunction(call));
    }

    pub(crate) fn result(&mut self, conn: ConnId, mut result: InvocationResult) {
        // Unknown: answered, stopped, or its caller has left. From another than the executor: not its to answer.
        if self.pending.get(&result.invocation_id).is_none_or(|pending| pending.executor != conn) {
            return;
        }
        let Some(pending) = self.pending.remove(&result.invocation_id) else { return };
        let Some((caller, id)) = pending.caller else { return };
        if self.connections.contains_key(&caller) {
            result.invocation_id = id;
            result.function_id = pending.function_id;
            self.send(caller, Message::InvocationResult(result));
        }
    }
}
