//! Calls: to whom they go, and how their answers come back.

use std::collections::hash_map::Entry;

use engine_protocol::{Action, ErrorBody, InvocationResult, InvokeFunction, Message, Payload};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::discovery::is_own;
use crate::router::{Caller, ConnId, Effect, Pending, Router};

/// Takes messages for named queues. Only the router calls it: for `enqueue` actions.
const ENQUEUE: &str = "iii-queue::enqueue";

/// What [`ENQUEUE`] is called with.
#[derive(Serialize)]
struct Enqueued<'a> {
    queue: &'a str,
    function_id: &'a str,
    data: Option<&'a Payload>,
}

/// What is called by the engine alone.
pub(crate) fn refuse_private(function_id: &str) -> Option<ErrorBody> {
    (function_id == ENQUEUE)
        .then(|| ErrorBody::new("FORBIDDEN", format!("`{ENQUEUE}` is not called: use the action `enqueue`")))
}

/// Longest id of a function that is called.
const MAX_ID_BYTES: usize = 1024;

/// Calls in flight that one connection may have made: each is remembered until it is answered.
const MAX_IN_FLIGHT: usize = 262_144;
const MAX_GUEST_IN_FLIGHT: usize = 16_384;

/// News of the engine's own that one connection has been told and not answered: more are not remembered.
const MAX_NEWS_IN_FLIGHT: usize = 1024;

/// A call's trace context is cloned for each that it leads to. Longer ones are left out; W3C wants 8192 bytes of baggage
/// to be carried, and a `traceparent` has 55.
const MAX_TRACEPARENT_BYTES: usize = 256;
const MAX_BAGGAGE_BYTES: usize = 8192;

impl Router {
    pub(crate) fn invoke(&mut self, conn: ConnId, mut call: Box<InvokeFunction>) {
        if !self.connections.contains_key(&conn) {
            return;
        }
        call.traceparent.take_if(|traceparent| traceparent.len() > MAX_TRACEPARENT_BYTES);
        call.baggage.take_if(|baggage| baggage.len() > MAX_BAGGAGE_BYTES);
        let (asked, function_id) = (call.invocation_id, &call.function_id);
        if let Some(error) = self.refuse_excess(conn, function_id) {
            return self.answer(conn, asked, "", Err(error));
        }
        let refusal = refuse_private(function_id)
            .or_else(|| self.refuse_call(conn, function_id))
            .or_else(|| self.refuse_settings(conn, function_id, call.data.as_ref()))
            .or_else(|| self.refuse_by_policy(conn, function_id));
        if let Some(refusal) = refusal {
            let function_id = call.function_id.clone();
            return self.forbid(conn, asked, &function_id, refusal);
        }
        let answer_to = asked.filter(|_| call.action != Some(Action::Void)).map(|id| Caller::Worker(conn, id));
        if let Some(instead) = self.through_middleware(conn, &call) {
            return self.dispatch(Some(conn), false, answer_to, call.function_id, Box::new(instead));
        }
        match &call.action {
            Some(Action::Enqueue { queue }) => {
                let queue = queue.clone();
                self.enqueue(conn, answer_to, &queue, call);
            }
            _ if is_own(function_id) => {
                let function_id = call.function_id;
                self.own(conn, asked.filter(|_| answer_to.is_some()), &function_id, call.data.as_ref());
            }
            _ => self.dispatch(Some(conn), true, answer_to, call.function_id.clone(), call),
        }
    }

    fn refuse_excess(&self, conn: ConnId, function_id: &str) -> Option<ErrorBody> {
        if function_id.len() > MAX_ID_BYTES {
            let message =
                format!("a function's id has at most {MAX_ID_BYTES} bytes, this one has {}", function_id.len());
            return Some(ErrorBody::new("function_not_found", message));
        }
        let limit = if self.is_guest(conn) { MAX_GUEST_IN_FLIGHT } else { MAX_IN_FLIGHT };
        let in_flight = self.connections.get(&conn).map_or(0, |connection| connection.in_flight);
        (in_flight >= limit).then(|| {
            ErrorBody::new(
                "limit_reached",
                format!("{limit} calls of this worker are not answered yet: no more are taken"),
            )
        })
    }

    /// A call that was made by `from` is not remembered any more.
    pub(crate) fn landed(&mut self, from: Option<ConnId>) {
        if let Some(connection) = from.and_then(|from| self.connections.get_mut(&from)) {
            connection.in_flight = connection.in_flight.saturating_sub(1);
        }
    }

    /// A call of the engine's own, or of a built-in worker.
    pub(crate) fn call(&mut self, call: Box<InvokeFunction>, answer: Option<Uuid>) {
        let caller = answer.map(Caller::Engine);
        if is_own(&call.function_id) {
            let error =
                ErrorBody::new("function_not_invokable", format!("`{}` answers workers only", call.function_id));
            return self.answer_caller(caller, &call.function_id, Err(error));
        }
        self.dispatch(None, false, caller, call.function_id.clone(), call);
    }

    pub(crate) fn forget(&mut self, answer: Uuid) {
        let is_it = |pending: &Pending| pending.caller == Some(Caller::Engine(answer));
        if self.pending.get(&answer).is_some_and(is_it) {
            self.forget_call(answer);
        } else {
            self.forget_calls(is_it);
        }
    }

    /// Nobody waits any more for the answers to these.
    pub(crate) fn forget_calls(&mut self, which: impl Fn(&Pending) -> bool) {
        let ids: Vec<Uuid> = self.pending.iter().filter(|(_, pending)| which(pending)).map(|(id, _)| *id).collect();
        for id in ids {
            self.forget_call(id);
        }
    }

    fn forget_call(&mut self, id: Uuid) {
        // What nobody waited for has an id of ours, which names no other call.
        if let Some(pending) = self.pending.remove(&id).filter(|pending| pending.caller.is_some()) {
            self.forgotten.add(pending.executor, id);
        }
    }

    fn enqueue(&mut self, conn: ConnId, caller: Option<Caller>, queue: &str, mut call: Box<InvokeFunction>) {
        let payload = call.data.take();
        let wrapped = Enqueued { queue, function_id: &call.function_id, data: payload.as_ref() };
        let Ok(data) = engine_protocol::raw(&wrapped) else { return };
        if !self.functions.contains_key(ENQUEUE) {
            let message = format!("queue `{queue}`: worker `iii-queue` is not in config.yaml");
            return self.answer_caller(caller, &call.function_id, Err(ErrorBody::new("enqueue_error", message)));
        }
        self.counts.deferred += 1;
        let known_as = std::mem::replace(&mut call.function_id, ENQUEUE.to_owned());
        call.data = Some(data.into());
        self.dispatch(Some(conn), false, caller, known_as, call);
    }

    /// Sends a call to whoever serves its function. `is_named`: whether the handler is told of `from`; `known_as`: the
    /// function's id in the answer.
    fn dispatch(
        &mut self,
        from: Option<ConnId>,
        is_named: bool,
        caller: Option<Caller>,
        known_as: String,
        mut call: Box<InvokeFunction>,
    ) {
        let provider = self.functions.get(&call.function_id).and_then(|providers| providers.last());
        let Some(provider) = provider else {
            let message = format!("function `{}` is not registered", call.function_id);
            return self.answer_caller(caller, &known_as, Err(ErrorBody::new("function_not_found", message)));
        };
        let (executor, is_request) = (provider.conn, provider.function.invocation.is_some());
        self.counts.called(&call.function_id);
        // The caller's id names the call all the way, unless another call that may still be answered has the same one.
        let id = match caller {
            Some(Caller::Worker(_, id) | Caller::Engine(id))
                if !self.is_in_use(executor, id) && self.forgotten.knows_all(executor) =>
            {
                id
            }
            _ => self.unused_id(executor),
        };
        let pending = Pending { executor, from, caller, function_id: known_as, since_us: self.now_us };
        self.remember(id, pending);
        call.invocation_id = Some(id);
        call.action = None;
        if let Some(connection) = from.and_then(|from| self.connections.get_mut(&from)) {
            connection.in_flight += 1;
        }
        let from =
            from.filter(|_| is_named).and_then(|conn| self.connections.get(&conn)).map(|connection| connection.worker);
        if is_request {
            self.unprefix(executor, &mut call.function_id);
            self.effects.push(Effect::Request { conn: executor, call, caller: from });
        } else if self.is_builtin(executor) {
            self.effects.push(Effect::Call { conn: executor, call, caller: from });
        } else {
            self.unprefix(executor, &mut call.function_id);
            self.effects.push(Effect::Send { conn: executor, message: Message::InvokeFunction(call), caller: from });
        }
    }

    /// Every call, but for news beyond those that their handler may leave unanswered: nobody pays for them.
    fn remember(&mut self, id: Uuid, pending: Pending) {
        if let Some(executor) = self.connections.get_mut(&pending.executor).filter(|_| pending.is_news()) {
            if executor.news >= MAX_NEWS_IN_FLIGHT {
                return;
            }
            executor.news += 1;
        }
        self.pending.insert(id, pending);
    }

    /// Whether a call that may still be answered has this id.
    fn is_in_use(&self, executor: ConnId, id: Uuid) -> bool {
        self.pending.contains_key(&id) || self.forgotten.contains(executor, id)
    }

    fn unused_id(&mut self, executor: ConnId) -> Uuid {
        loop {
            let id = self.fresh_id();
            if !self.is_in_use(executor, id) {
                return id;
            }
        }
    }

    pub(crate) fn is_builtin(&self, conn: ConnId) -> bool {
        self.connections.get(&conn).is_some_and(|connection| connection.builtin.is_some())
    }

    pub(crate) fn result(&mut self, conn: ConnId, mut result: Box<InvocationResult>) {
        // Unknown: answered, stopped, or its caller has left. From another than the executor: not its to answer.
        let pending = match self.pending.entry(result.invocation_id) {
            Entry::Occupied(place) if place.get().executor == conn => place.remove(),
            _ => return self.forgotten.answered(conn, result.invocation_id),
        };
        if let Some(executor) = self.connections.get_mut(&conn).filter(|_| pending.is_news()) {
            executor.news = executor.news.saturating_sub(1);
        }
        self.landed(pending.from);
        self.counts.ended(result.error.is_none(), self.now_us.saturating_sub(pending.since_us));
        match pending.caller {
            Some(Caller::Worker(caller, id)) if self.connections.contains_key(&caller) => {
                result.invocation_id = id;
                result.function_id = pending.function_id;
                self.send(caller, Message::InvocationResult(result));
            }
            Some(Caller::Engine(answer)) => {
                let result = result.error.map_or(Ok(result.result), Err);
                self.effects.push(Effect::Answered { answer, result });
            }
            Some(Caller::Worker(..)) | None => {}
        }
    }

    /// Answers whoever waits, if anybody does.
    pub(crate) fn answer_caller(
        &mut self,
        caller: Option<Caller>,
        function_id: &str,
        result: Result<Option<Box<RawValue>>, ErrorBody>,
    ) {
        match caller {
            Some(Caller::Worker(conn, id)) => self.answer(conn, Some(id), function_id, result),
            Some(Caller::Engine(answer)) => {
                let result = result.map(|result| result.map(Payload::from));
                self.effects.push(Effect::Answered { answer, result });
            }
            None => {}
        }
    }
}
