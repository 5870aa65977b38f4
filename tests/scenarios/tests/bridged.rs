//! Engines that work with what another engine keeps: bridge adapters of built-in workers, and `iii-bridge`.

use std::time::Duration;

use engine_client::{Call, Client, ClientConfig, FunctionSpec};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use test_rig::{Rig, eventually};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

/// The engine that keeps everything.
fn far() -> Rig {
    let workers = "  - {name: iii-state}
  - {name: iii-stream, config: {host: 127.0.0.1, port: 0}}
  - {name: iii-queue}
  - {name: iii-pubsub}
";
    Rig::builder().workers(workers).start_engine_only()
}

/// An engine whose state, streams and topics are at `url`.
fn near(url: &str) -> Rig {
    let adapter = format!("adapter: {{name: bridge, config: {{bridge_url: \"{url}\"}}}}");
    let workers = format!(
        "  - {{name: iii-state, config: {{{adapter}}}}}
  - {{name: iii-stream, config: {{host: 127.0.0.1, port: 0, {adapter}}}}}
  - {{name: iii-queue, config: {{{adapter}}}}}
"
    );
    Rig::builder().workers(&workers).start_engine_only()
}

/// A worker with one function, which tells what it is called with and answers with the same.
struct Worker {
    client: Client,
    calls: mpsc::UnboundedReceiver<Value>,
    runtime: Runtime,
}

impl Worker {
    fn connect(rig: &Rig, function_id: &str) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (told, calls) = mpsc::unbounded_channel();
        let client = runtime.block_on(async {
            let client = Client::connect(ClientConfig { url: rig.url(), name: "worker".into(), description: None });
            let spec = FunctionSpec { id: function_id.into(), description: "Echoes".into(), ..FunctionSpec::default() };
            client.register(spec, move |call: Call| {
                let data: Value = serde_json::from_str(call.data.get()).expect("JSON");
                let answer = to_raw_value(&data).expect("JSON");
                let _ = told.send(data);
                async { Ok(Some(answer)) }
            });
            client.connected(PATIENCE).await.expect("connected");
            client
        });
        Self { client, calls, runtime }
    }

    fn bind(&self, rig: &Rig, trigger_type: &str, function_id: &str, config: &Value) {
        self.runtime.block_on(async { self.client.register_trigger(trigger_type, function_id, config) });
        wait_for_binding(rig, function_id);
    }

    fn called_with(&mut self) -> Value {
        let call = async { tokio::time::timeout(PATIENCE, self.calls.recv()).await };
        self.runtime.block_on(call).expect("a call in time").expect("a worker")
    }
}

fn wait_for_binding(rig: &Rig, function: &str) {
    let bound = eventually(PATIENCE, || {
        let all = rig.call("engine::registered-triggers::list", &json!({ "include_internal": true })).to_string();
        all.contains(function).then_some(())
    });
    assert!(bound.is_some(), "no binding of {function}\n{}", rig.log());
}

#[test]
fn state_of_another_engine_is_read_and_written() {
    let far = far();
    let near = near(&far.url());
    let _ = near.call("state::set", &json!({ "scope": "s", "key": "k", "value": { "n": 1 } }));
    assert_eq!(far.call("state::get", &json!({ "scope": "s", "key": "k" })), json!({ "n": 1 }));
    let ops = json!([{ "type": "increment", "path": "n", "by": 2 }]);
    let _ = far.call("state::update", &json!({ "scope": "s", "key": "k", "ops": ops }));
    assert_eq!(near.call("state::list", &json!({ "scope": "s" })), json!([{ "n": 3 }]));
}

#[test]
fn topics_of_another_engine_reach_functions_here() {
    let far = far();
    let near = near(&far.url());
    let mut worker = Worker::connect(&near, "mail::send");
    worker.bind(&near, "durable:subscriber", "mail::send", &json!({ "topic": "mail" }));
    wait_for_binding(&far, "mail::send");
    let _ = far.call("iii::durable::publish", &json!({ "topic": "mail", "data": { "to": "far" } }));
    assert_eq!(worker.called_with(), json!({ "to": "far" }));
    let _ = near.call("iii::durable::publish", &json!({ "topic": "mail", "data": { "to": "near" } }));
    assert_eq!(worker.called_with(), json!({ "to": "near" }));
    let done = eventually(PATIENCE, || {
        let stats = far.call("engine::queue::topic_stats", &json!({ "topic": "mail" }));
        (stats["depth"] == 0).then_some(stats["dlq_depth"].clone())
    });
    assert_eq!(done, Some(json!(0)), "{}", far.log());
}

#[test]
fn engines_that_share_streams_of_another_see_each_others_events() {
    let far = far();
    let (near, beside) = (near(&far.url()), near(&far.url()));
    let mut worker = Worker::connect(&near, "chat::seen");
    worker.bind(&near, "stream", "chat::seen", &json!({ "stream_name": "chat" }));
    let subscribed = eventually(PATIENCE, || {
        let all = far.call("engine::registered-triggers::list", &json!({ "include_internal": true })).to_string();
        (all.matches("stream-bridge::").count() >= 2).then_some(())
    });
    assert!(subscribed.is_some(), "{}", far.log());
    for (engine, data) in [(&near, "mine"), (&beside, "theirs")] {
        let item = json!({ "stream_name": "chat", "group_id": "room", "item_id": data, "data": data });
        let _ = engine.call("stream::set", &item);
        assert_eq!(worker.called_with()["event"], json!({ "type": "create", "data": data }));
    }
    let room = json!({ "stream_name": "chat", "group_id": "room" });
    assert_eq!(near.call("stream::list", &room), json!(["mine", "theirs"]));
}

#[test]
fn functions_are_forwarded_to_another_engine_and_exposed_there() {
    let far = far();
    let config = format!(
        "{{url: \"{}\", forward: [{{local_function: \"far::echo\", remote_function: \"echo\"}}], \
         expose: [{{local_function: \"mine\", remote_function: \"near::mine\"}}]}}",
        far.url()
    );
    let workers = format!("  - {{name: iii-bridge, config: {config}}}\n");
    let near = Rig::builder().workers(&workers).start_engine_only();
    let mut there = Worker::connect(&far, "echo");
    let mut here = Worker::connect(&near, "mine");
    let number = |answer: Value| answer["n"].clone();
    let forwarded = eventually(PATIENCE, || near.trigger("far::echo", &json!({ "n": 1 })).ok());
    assert_eq!(forwarded.map(number), Some(json!(1)), "{}", near.log());
    assert_eq!(there.called_with()["n"], 1);
    let exposed = eventually(PATIENCE, || far.trigger("near::mine", &json!({ "n": 2 })).ok());
    assert_eq!(exposed.map(number), Some(json!(2)), "{}", near.log());
    assert_eq!(here.called_with()["n"], 2);
}
