//! An engine of a few functions.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, Call, ChannelRef, Engine, EngineApi, ErrorBody, Invocation, PipeReader,
    PipeWriter, Raw, Reply, Stats, Trace,
};
use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::mpsc;

/// For what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

type Function = Arc<dyn Fn(Invocation) -> BoxFuture<'static, Answer> + Send + Sync>;

#[derive(Default)]
pub(crate) struct FakeEngine {
    functions: Mutex<HashMap<String, Function>>,
    builtin: OnceLock<Arc<dyn Builtin>>,
}

impl FakeEngine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn engine(self: &Arc<Self>) -> Engine {
        Arc::<Self>::clone(self)
    }

    /// From here on functions can call this worker's.
    pub(crate) fn host(&self, builtin: &Arc<dyn Builtin>) {
        let _ = self.builtin.set(Arc::clone(builtin));
    }

    pub(crate) fn offer<R>(&self, id: &str, function: impl Fn(Value) -> R + Send + Sync + 'static)
    where
        R: Future<Output = Result<Value, ErrorBody>> + Send + 'static,
    {
        let function = Arc::new(move |invocation: Invocation| {
            let answer = function(value(&invocation.data));
            async move { answer.await.map(|value| Some(raw(&value))) }.boxed()
        });
        self.functions.lock().expect("no panic").insert(id.to_owned(), function);
    }

    /// A function that only notes what it is called with.
    pub(crate) fn note(&self, id: &str) -> mpsc::UnboundedReceiver<(Value, Trace)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let function = Arc::new(move |invocation: Invocation| {
            let _ = sender.send((value(&invocation.data), invocation.trace));
            async { Ok(None) }.boxed()
        });
        self.functions.lock().expect("no panic").insert(id.to_owned(), function);
        receiver
    }
}

impl EngineApi for FakeEngine {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        let function = self.functions.lock().expect("no panic").get(&invocation.function_id).cloned();
        if let Some(function) = function {
            return function(invocation);
        }
        match self.builtin.get() {
            Some(builtin) => {
                let Invocation { function_id, data, trace } = invocation;
                let reply = builtin.call(Call { function_id, data: Some(data), trace, caller: None });
                answered(reply).boxed()
            }
            None => async move { Err(ErrorBody::new("function_not_found", invocation.function_id)) }.boxed(),
        }
    }

    fn knows(&self, function_id: &str) -> bool {
        self.functions.lock().expect("no panic").contains_key(function_id)
    }

    fn pipe_to_worker(&self, _items: usize) -> (PipeWriter, ChannelRef) {
        unreachable!("no worker under test uses channels")
    }

    fn pipe_from_worker(&self, _items: usize) -> (ChannelRef, PipeReader) {
        unreachable!("no worker under test uses channels")
    }

    fn withdraw(&self, _: &engine_builtin::ChannelRef) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn version(&self) -> &'static str {
        "0.0.0"
    }
}

/// Calls a function of a built-in worker; `None` is a function that returns nothing.
pub(crate) async fn call(
    builtin: &Arc<dyn Builtin>,
    function_id: &str,
    data: Value,
) -> Result<Option<Value>, ErrorBody> {
    let call = Call { function_id: function_id.into(), data: Some(raw(&data)), trace: Trace::default(), caller: None };
    let answer = tokio::time::timeout(PATIENCE, answered(builtin.call(call))).await.expect("an answer");
    answer.map(|result| result.map(|result| value(&result)))
}

pub(crate) async fn answered(reply: Reply) -> Answer {
    match reply {
        Reply::Now(answer) => answer,
        Reply::Later(answer) => answer.await,
    }
}

pub(crate) fn bind(builtin: &Arc<dyn Builtin>, trigger_type: &str, function_id: &str, config: Value) {
    let id = format!("{trigger_type} {function_id}");
    let binding = Binding {
        id,
        trigger_type: trigger_type.into(),
        function_id: function_id.into(),
        config,
        owner: None,
        vm: None,
    };
    builtin.bind(binding).expect("bound");
}

pub(crate) fn unbind(builtin: &Arc<dyn Builtin>, trigger_type: &str, function_id: &str) {
    builtin.unbind(trigger_type, &format!("{trigger_type} {function_id}"));
}

pub(crate) async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(PATIENCE, receiver.recv()).await.expect("in time").expect("a sender")
}

pub(crate) fn raw(value: &Value) -> Raw {
    serde_json::value::to_raw_value(value).expect("a value")
}

fn value(raw: &Raw) -> Value {
    serde_json::from_str(raw.get()).expect("JSON")
}
