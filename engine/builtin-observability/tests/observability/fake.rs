//! An engine that answers nothing and remembers every call. Its function `hangs` never ends.

use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::time::Duration;

use builtin_observability::Observability;
use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, Call, ChannelRef, EngineApi, Invocation, PipeReader, PipeWriter, Reply, Stats,
    Trace,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// How long anything may take; far more than it does.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct FakeEngine {
    pub(crate) stats: Mutex<Stats>,
    calls: Mutex<Vec<Invocation>>,
    called: Notify,
    /// Whom every method asks back, as the engine does under its own lock.
    pub(crate) asked_back: OnceLock<Weak<Observability>>,
    /// Each method that asked, and whether it had an answer.
    pub(crate) asked: Mutex<Vec<(&'static str, bool)>>,
}

impl EngineApi for FakeEngine {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        self.ask_back("call");
        let hangs = invocation.function_id == "hangs";
        self.calls.lock().expect("a lock").push(invocation);
        self.called.notify_waiters();
        if hangs {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(None) })
    }

    fn knows(&self, function_id: &str) -> bool {
        self.ask_back("knows");
        function_id == "stream::send"
    }

    fn pipe_to_worker(&self, _: usize) -> (PipeWriter, ChannelRef) {
        panic!("no channels here")
    }

    fn pipe_from_worker(&self, _: usize) -> (ChannelRef, PipeReader) {
        panic!("no channels here")
    }

    fn withdraw(&self, _: &engine_builtin::ChannelRef) {}

    fn stats(&self) -> Stats {
        self.ask_back("stats");
        self.stats.lock().expect("a lock").clone()
    }

    fn version(&self) -> &'static str {
        self.ask_back("version");
        "1.2.3"
    }
}

impl FakeEngine {
    /// Gauges, a binding and its end: from another thread, so that a lock that our caller holds shows.
    fn ask_back(&self, method: &'static str) {
        let Some(worker) = self.asked_back.get().and_then(Weak::upgrade) else { return };
        let (answered, answer) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = worker.latest_metrics("w1");
            bind(&worker, "trace", "asked::back", Value::Null).expect("bound");
            worker.unbind("trace", "trace-asked::back");
            answered.send(())
        });
        let answered = answer.recv_timeout(PATIENCE / 2).is_ok();
        self.asked.lock().expect("a lock").push((method, answered));
    }

    /// Calls of a function so far: payload and trace.
    pub(crate) fn calls(&self, function_id: &str) -> Vec<(Value, Trace)> {
        let calls = self.calls.lock().expect("a lock");
        let of = calls.iter().filter(|call| call.function_id == function_id);
        of.map(|call| (serde_json::from_str(call.data.get()).expect("JSON"), call.trace.clone())).collect()
    }

    /// Waits until a function was called as wanted.
    pub(crate) async fn called(
        &self,
        function_id: &str,
        wanted: impl Fn(&[(Value, Trace)]) -> bool,
    ) -> Vec<(Value, Trace)> {
        let waiting = async {
            loop {
                let next = self.called.notified();
                tokio::pin!(next);
                next.as_mut().enable();
                let calls = self.calls(function_id);
                if wanted(&calls) {
                    return calls;
                }
                next.await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await;
        in_time.unwrap_or_else(|_| panic!("{function_id} was called so: {:?}", self.calls(function_id)))
    }
}

/// A started worker; its Prometheus endpoint has any port.
pub(crate) async fn started(settings: Value) -> (Arc<FakeEngine>, Arc<Observability>) {
    let mut settings = settings;
    settings["prometheus"] = json!({"port": 0});
    let engine = Arc::new(FakeEngine::default());
    let worker =
        builtin_observability::create(Arc::clone(&engine) as _, settings).await.expect("settings that can be used");
    worker.start().await.expect("a start");
    (engine, worker)
}

pub(crate) fn ask(worker: &Observability, function_id: &str, data: Value) -> Result<Value, engine_builtin::ErrorBody> {
    ask_in(worker, function_id, data, Trace::default())
}

pub(crate) fn ask_in(
    worker: &Observability,
    function_id: &str,
    data: Value,
    trace: Trace,
) -> Result<Value, engine_builtin::ErrorBody> {
    let data = Some(serde_json::value::to_raw_value(&data).expect("JSON"));
    let call = Call { function_id: function_id.to_owned(), data, trace, caller: None };
    match worker.call(call) {
        Reply::Now(answer) => {
            Ok(answer?.map_or(Value::Null, |answer| serde_json::from_str(answer.get()).expect("JSON")))
        }
        Reply::Later(_) => panic!("{function_id} answers later"),
    }
}

pub(crate) fn bind(worker: &Observability, trigger_type: &str, function_id: &str, config: Value) -> Result<(), String> {
    let binding = Binding {
        id: format!("{trigger_type}-{function_id}"),
        trigger_type: trigger_type.to_owned(),
        function_id: function_id.to_owned(),
        config,
        owner: None,
        vm: None,
    };
    worker.bind(binding).map_err(|error| error.code)
}

/// Asks until the answer is as wanted: what SDKs send is read by a task.
pub(crate) async fn until(
    worker: &Observability,
    function_id: &str,
    data: Value,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let asking = async {
        loop {
            let answer = ask(worker, function_id, data.clone()).expect("an answer");
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, asking).await;
    in_time.unwrap_or_else(|_| panic!("{function_id} answers {:?}", ask(worker, function_id, data)))
}

pub(crate) fn frame(prefix: &str, json: &Value) -> Vec<u8> {
    format!("{prefix}{json}").into_bytes()
}

pub(crate) const NOW: u64 = 1_700_000_000_000_000_000;

/// A trace export request of spans `(trace, span, parent, name)`.
pub(crate) fn spans(list: &[(u8, u8, u8, &str)]) -> Value {
    let spans: Vec<Value> = list
        .iter()
        .map(|(trace, span, parent, name)| {
            json!({
                "traceId": trace_id(*trace),
                "spanId": format!("{span:016x}"),
                "parentSpanId": if *parent == 0 { String::new() } else { format!("{parent:016x}") },
                "name": name,
                "startTimeUnixNano": (NOW + u64::from(*span)).to_string(),
                "endTimeUnixNano": (NOW + 1_000_000).to_string(),
            })
        })
        .collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
        "scopeSpans": [{"scope": {"name": "test"}, "spans": spans}],
    }]})
}

pub(crate) fn trace_id(number: u8) -> String {
    format!("{number:032x}")
}
