//! What the engine and its workers tell of themselves, at those who are told: Prometheus and an OTLP receiver.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use engine_client::{Call, Client, ClientConfig, FunctionSpec};
use serde_json::{Value, json};
use test_rig::{OtlpReceiver, Prometheus, Received, Rig, attribute, eventually, free_port, sdk};
use tokio::runtime::Runtime;
use tonic::transport::Server;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn prometheus_scrapes_how_often_functions_were_called() {
    let port = free_port();
    let rig = Rig::builder()
        .workers(&format!("  - {{name: iii-observability, config: {{prometheus: {{port: {port}}}}}}}\n"))
        .start_engine_only();
    Runtime::new().expect("a runtime").block_on(async {
        let client = Client::connect(ClientConfig { url: rig.url(), name: "shop".into(), description: None });
        for id in ["shop::quote", "shop::broken"] {
            client.register(FunctionSpec { id: id.into(), ..FunctionSpec::default() }, move |_: Call| async move {
                if id == "shop::quote" { Ok(None) } else { Err(engine_client::ErrorBody::new("BROKEN", "on purpose")) }
            });
        }
        client.connected(PATIENCE).await.expect("connected");
        for _ in 0..7 {
            client.call("shop::quote", &json!({}), PATIENCE).await.expect("an answer");
        }
        client.call("shop::broken", &json!({}), PATIENCE).await.expect_err("it is broken");
    });
    let prometheus = Prometheus::scraping(SocketAddr::from(([127, 0, 0, 1], port)));
    let quotes = prometheus.await_samples("iii_function_invocations_total{function_id=\"shop::quote\"}");
    assert_eq!((quotes.len(), &quotes[0]["value"][1]), (1, &json!("7")), "{quotes:?}");
    assert_eq!(quotes[0]["metric"]["job"], "iii");
    let failed = prometheus.await_samples("iii_function_invocations_total{function_id=\"shop::broken\"}");
    assert_eq!(failed[0]["value"][1], "1");
    // The engine goes on being scraped, and its counts go on.
    let _ = rig.call("engine::health::check", &json!({}));
    let _ = prometheus.await_samples("iii_function_invocations_total{function_id=\"engine::health::check\"} >= 1");
    let _ = prometheus.await_samples("iii_invocation_duration_seconds_count >= 9");
    let _ = prometheus.await_samples("up{job=\"iii\"} == 1");
}

/// A program in Python, until this is dropped.
struct Program(Child);

impl Program {
    fn start(rig: &Rig, name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/python/telemetry");
        Self(sdk::start(rig, sdk::PYTHON, &folder.join(name)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `(service, name of the span, id of the span, id of its parent)` of each of a trace.
type Edges = BTreeSet<(String, String, String, Option<String>)>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn edges_sent(received: &Received, trace_id: &str) -> Edges {
    let of_trace = received.spans.iter().filter(|(_, span)| hex(&span.trace_id) == trace_id);
    of_trace
        .map(|(from, span)| {
            let service = attribute(from, "service.name").expect("a service").to_owned();
            let parent = Some(hex(&span.parent_span_id)).filter(|parent| !parent.is_empty());
            (service, span.name.clone(), hex(&span.span_id), parent)
        })
        .collect()
}

/// The edges of `engine::traces::tree`, by who stands below whom.
fn edges_below(parent: Option<&str>, spans: &Value, edges: &mut Edges) {
    for span in spans.as_array().expect("spans") {
        let text = |field: &str| span[field].as_str().expect("text").to_owned();
        edges.insert((text("service_name"), text("name"), text("span_id"), parent.map(ToOwned::to_owned)));
        edges_below(Some(&text("span_id")), &span["children"], edges);
    }
}

#[test]
fn a_call_chain_of_two_workers_is_one_tree_at_the_otlp_receiver_and_in_the_engine() {
    let runtime = Runtime::new().expect("a runtime");
    let receiver = OtlpReceiver::default();
    let collector = runtime.block_on(receiver.serve("127.0.0.1:0", Server::builder()));
    let rig = Rig::builder()
        .workers(&format!(
            "  - name: iii-observability\n    config: {{exporter: both, logs_exporter: both, metrics_exporter: otlp, \
             logs_flush_interval_ms: 100, endpoint: \"http://{}\", prometheus: {{enabled: false}}}}\n",
            collector.address
        ))
        .start_engine_only();
    let _back = Program::start(&rig, "back.py");
    rig.wait_for_worker("back");
    let _front = Program::start(&rig, "front.py");
    rig.wait_for_worker("front");
    let answered = eventually(PATIENCE, || rig.trigger("front::order", &json!({ "qty": 2 })).ok());
    assert_eq!(answered, Some(json!({ "total": 3.0 })), "{}", rig.log());

    let names = ["execute front::order", "execute back::quote"];
    let received =
        runtime.block_on(receiver.until(|received| names.iter().all(|name| received.span_names().contains(name))));
    let named = |name: &str| received.spans.iter().find(|(_, span)| span.name == name).expect("a span").clone();
    let (caller, executor) = (named(names[0]), named(names[1]));
    assert_eq!(attribute(&caller.0, "service.name"), Some("front-desk"));
    assert_eq!(attribute(&executor.0, "service.name"), Some("back-office"));
    assert_eq!(hex(&executor.1.trace_id), hex(&caller.1.trace_id));
    assert_eq!(hex(&executor.1.parent_span_id), hex(&caller.1.span_id), "the caller's span is the parent");

    let trace_id = hex(&caller.1.trace_id);
    let sent = edges_sent(&received, &trace_id);
    let mut shown = Edges::new();
    let tree = rig.call("engine::traces::tree", &json!({ "trace_id": trace_id }));
    edges_below(None, &tree["roots"], &mut shown);
    assert_eq!(shown, sent, "{tree:#}");

    // What was logged on the way belongs to the caller's span, here and there.
    let sent = runtime.block_on(receiver.until(|received| received.log_bodies().contains(&"an order came in")));
    let (_, record) = sent.logs.iter().find(|(_, record)| !record.span_id.is_empty()).expect("a log of a span");
    assert_eq!((hex(&record.trace_id), hex(&record.span_id)), (trace_id.clone(), hex(&caller.1.span_id)));
    let logs = rig.call("engine::logs::list", &json!({ "trace_id": trace_id }));
    assert_eq!((&logs["total"], &logs["logs"][0]["body"]), (&json!(1), &json!("an order came in")), "{logs}");
    assert_eq!(logs["logs"][0]["span_id"], hex(&caller.1.span_id));
    assert_eq!(logs["logs"][0]["severity_text"], "WARN");

    let front = || rig.call("engine::workers::info", &json!({ "name": "front" }))["worker"].clone();
    assert_eq!(front()["latest_metrics"], Value::Null);
    let _ = rig.call("front::measure", &json!({ "worker_id": front()["id"] }));
    let gauges = eventually(PATIENCE, || Some(front()["latest_metrics"].clone()).filter(|gauges| !gauges.is_null()));
    let gauges = gauges.unwrap_or_else(|| panic!("no gauges\n{}", rig.log()));
    assert!(gauges["memory_rss"].as_f64().is_some_and(|bytes| bytes > 1e6), "{gauges}");
    assert_eq!(gauges["runtime"], "python");
    let wanted = ["iii.worker.memory.rss", "iii.invocations.total"];
    runtime.block_on(receiver.until(|received| wanted.iter().all(|name| received.metric_names().contains(name))));
}
