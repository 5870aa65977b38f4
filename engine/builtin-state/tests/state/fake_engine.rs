//! An engine that notes what is called and answers as a test wants.

use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, Call, ChannelRef, Engine, EngineApi, Invocation, PipeReader, PipeWriter, Raw,
    Reply, Stats, Trace,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

type Answering = Box<dyn Fn(Invocation) -> BoxFuture<'static, Answer> + Send + Sync>;

struct FakeEngine {
    called: mpsc::Sender<Invocation>,
    answering: Answering,
}

impl EngineApi for FakeEngine {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        self.called.try_send(invocation.clone()).expect("a test that looks at what is called");
        (self.answering)(invocation)
    }

    fn knows(&self, _function_id: &str) -> bool {
        true
    }

    fn pipe_to_worker(&self, _items: usize) -> (PipeWriter, ChannelRef) {
        unreachable!("state uses no channels")
    }

    fn pipe_from_worker(&self, _items: usize) -> (ChannelRef, PipeReader) {
        unreachable!("state uses no channels")
    }

    fn withdraw(&self, _channel: &ChannelRef) {
        unreachable!("state uses no channels")
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn version(&self) -> &'static str {
        "0"
    }
}

/// What is called, in order.
pub(crate) struct Called(pub(crate) mpsc::Receiver<Invocation>);

impl Called {
    /// The next call: its function and its payload.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        let call = self.next_call().await;
        (call.function_id, serde_json::from_str(call.data.get()).expect("JSON"))
    }

    pub(crate) async fn next_call(&mut self) -> Invocation {
        tokio::time::timeout(PATIENCE, self.0.recv()).await.expect("a call in time").expect("an engine")
    }

    /// What has been called by now and not been looked at.
    pub(crate) fn more(&mut self) -> usize {
        std::iter::from_fn(|| self.0.try_recv().ok()).count()
    }
}

/// An engine whose functions answer like this.
pub(crate) fn engine(
    answering: impl Fn(Invocation) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
) -> (Engine, Called) {
    let (called, calls) = mpsc::channel(100_000);
    (Arc::new(FakeEngine { called, answering: Box::new(answering) }), Called(calls))
}

/// An engine whose functions return nothing.
pub(crate) fn quiet_engine() -> (Engine, Called) {
    engine(|_| Box::pin(async { Ok(None) }))
}

/// A worker of these settings.
pub(crate) async fn state(engine: Engine, settings: Value) -> Arc<dyn Builtin> {
    builtin_state::create(engine, settings).await.expect("a worker")
}

pub(crate) async fn state_in_memory() -> Arc<dyn Builtin> {
    state(quiet_engine().0, in_memory()).await
}

pub(crate) fn in_memory() -> Value {
    json!({"adapter": {"name": "kv", "config": {"store_method": "in_memory"}}})
}

pub(crate) fn raw(text: &str) -> Raw {
    RawValue::from_string(text.into()).expect("JSON")
}

pub(crate) fn reply(state: &Arc<dyn Builtin>, function: &str, data: &str) -> Reply {
    let function_id = format!("state::{function}");
    state.call(Call { function_id, data: Some(raw(data)), trace: trace(), caller: None })
}

pub(crate) fn trace() -> Trace {
    Trace { traceparent: Some("00-1-2-01".into()), baggage: Some("of=the-writer".into()) }
}

/// Calls a function; `Ok("")` where it returns nothing.
pub(crate) async fn ask(state: &Arc<dyn Builtin>, function: &str, data: &str) -> Result<String, String> {
    let answer = match reply(state, function, data) {
        Reply::Now(answer) => answer,
        Reply::Later(answer) => tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time"),
    };
    match answer {
        Ok(result) => Ok(result.map_or_else(String::new, |result| result.get().to_owned())),
        Err(error) => Err(error.code),
    }
}

/// Calls a function that succeeds.
pub(crate) async fn done(state: &Arc<dyn Builtin>, function: &str, data: Value) -> String {
    ask(state, function, &data.to_string()).await.expect("an answer")
}

pub(crate) fn bind(state: &Arc<dyn Builtin>, id: &str, function_id: &str, config: Value) {
    state.bind(binding(id, function_id, config)).expect("a binding");
}

pub(crate) fn binding(id: &str, function_id: &str, config: Value) -> Binding {
    let (id, function_id) = (id.to_owned(), function_id.to_owned());
    Binding { id, trigger_type: builtin_state::TRIGGER_TYPE.into(), function_id, config, owner: None, vm: None }
}
