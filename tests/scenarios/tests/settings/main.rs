//! Settings of built-in workers do what they say when they are to: at once, with a move, or with the next start. Which
//! test has which key stands in `docs/settings-tests.md`.

mod listening;
mod logs;
mod metrics;
mod queue;
mod reload;
mod restart;
mod telemetry;
mod traces;

use std::time::Duration;

use engine_client::{Call, Client, ClientConfig, ErrorBody, FunctionSpec};
use serde_json::{Value, json};
use test_rig::{Rig, eventually};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);

/// An engine with these entries of config.yaml, and an observability worker that listens nowhere.
fn engine(workers: &str) -> Rig {
    let quiet = "  - {name: iii-observability, config: {prometheus: {enabled: false}}}\n";
    Rig::builder().workers(quiet).workers(workers).start_engine_only()
}

/// Stores settings, and waits until their worker has taken them.
fn set(rig: &Rig, worker: &str, settings: &Value) {
    let taken = format!("new settings are in use worker=\"{worker}\"");
    let count = || rig.log().matches(&taken).count();
    let before = count();
    store(rig, worker, settings);
    until(rig, "settings are taken", || (count() > before).then_some(()));
}

/// Stores settings, which their worker takes soon after.
fn store(rig: &Rig, worker: &str, settings: &Value) {
    let _ = rig.call("configuration::set", &json!({ "id": worker, "value": settings }));
}

/// Replaces `old` in config.yaml, and waits until the engine has taken it.
fn edit(rig: &Rig, old: &str, new: &str) {
    let count = || rig.log().matches("reload: done").count();
    let before = count();
    let file = rig.project().join("config.yaml");
    let text = std::fs::read_to_string(&file).expect("config.yaml");
    assert!(text.contains(old), "{text}");
    std::fs::write(file, text.replace(old, new)).expect("config.yaml");
    until(rig, "config.yaml is taken", || (count() > before).then_some(()));
}

/// Waits for `question` to be answered.
#[track_caller]
fn until<T>(rig: &Rig, what: &str, question: impl FnMut() -> Option<T>) -> T {
    eventually(PATIENCE, question).unwrap_or_else(|| panic!("never: {what}\nlog:\n{}", rig.log()))
}

/// Ends the engine as a power cut would, and starts it anew.
fn restart(rig: &mut Rig) {
    rig.kill_and_restart_engine();
    rig.wait_for_worker("iii-engine-functions");
}

/// A worker of our own.
struct Peer {
    runtime: Runtime,
    client: Client,
}

impl Peer {
    fn connect(rig: &Rig) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let config = ClientConfig { url: rig.url(), name: "peer".into(), description: None };
        let client = runtime.block_on(async {
            let client = Client::connect(config);
            client.connected(PATIENCE).await.expect("connected");
            client
        });
        Self { runtime, client }
    }

    /// Registers a function, and waits until it is there.
    fn offer(
        &self,
        rig: &Rig,
        id: &str,
        answer: impl Fn(Value) -> Result<Value, ErrorBody> + Clone + Send + Sync + 'static,
    ) {
        let _context = self.runtime.enter();
        self.client.register(FunctionSpec { id: id.into(), ..FunctionSpec::default() }, move |call: Call| {
            let asked = serde_json::from_str(call.data.get()).expect("JSON");
            let answered = answer(asked).map(|value| Some(serde_json::value::to_raw_value(&value).expect("JSON")));
            async move { answered }
        });
        until(rig, id, || rig.trigger("engine::functions::info", &json!({ "function_id": id })).ok());
    }

    /// Binds a trigger, and waits until it is there.
    fn bind(&self, rig: &Rig, trigger_type: &str, function: &str, config: &Value) {
        let _context = self.runtime.enter();
        let id = self.client.register_trigger(trigger_type, function, config);
        let wanted = json!({ "id": id });
        until(rig, trigger_type, || rig.trigger("engine::registered-triggers::info", &wanted).ok());
    }
}
