//! Telemetry as an SDK sends it, over a connection of our own.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::SinkExt;
use serde_json::{Value, json};
use test_rig::{OtlpReceiver, OtlpServer, Rig};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::until;

/// What is sent arrives in its order.
pub(crate) struct Telemetry {
    runtime: Runtime,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// One span of `shop`, with numbers for its ids.
pub(crate) fn span(trace: u64, id: u64, parent: Option<u64>, name: &str) -> Value {
    let parent = parent.map(|parent| format!("{parent:016x}")).unwrap_or_default();
    json!({
        "traceId": trace_id(trace), "spanId": format!("{id:016x}"), "parentSpanId": parent, "name": name,
        "startTimeUnixNano": now_ns().to_string(), "endTimeUnixNano": now_ns().to_string(),
    })
}

pub(crate) fn trace_id(trace: u64) -> String {
    // Evenly spread in all its bytes, as ids that are drawn are.
    let spread = trace.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{spread:016x}{spread:016x}")
}

pub(crate) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_nanos()).expect("before 2554")
}

impl Telemetry {
    pub(crate) fn connect(rig: &Rig) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let url = format!("{}/otel", rig.url());
        let (socket, _) = runtime.block_on(connect_async(url)).expect("connected");
        Self { runtime, socket }
    }

    pub(crate) fn spans(&mut self, service: &str, spans: &[Value]) {
        let resource = resource(service);
        self.send("OTLP", &json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}));
    }

    pub(crate) fn log(&mut self, body: &str, severity: u32) {
        let record = json!({"body": {"stringValue": body}, "severityNumber": severity});
        let resource = resource("shop");
        self.send("LOGS", &json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}));
    }

    pub(crate) fn gauge(&mut self, name: &str, value: f64, time_ns: u64) {
        let point = json!({"asDouble": value, "timeUnixNano": time_ns.to_string()});
        let metric = json!({"name": name, "gauge": {"dataPoints": [point]}});
        let resource = resource("shop");
        self.send(
            "MTRC",
            &json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}),
        );
    }

    fn send(&mut self, kind: &str, content: &Value) {
        let frame = Message::binary(format!("{kind}{content}"));
        self.runtime.block_on(self.socket.send(frame)).expect("sent");
    }
}

fn resource(service: &str) -> Value {
    json!({"attributes": [{"key": "service.name", "value": {"stringValue": service}}]})
}

/// A receiver of OTLP, and where it is.
pub(crate) struct Collector {
    pub(crate) runtime: Runtime,
    pub(crate) receiver: OtlpReceiver,
    server: OtlpServer,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let receiver = OtlpReceiver::default();
        let server = runtime.block_on(receiver.serve("127.0.0.1:0", tonic::transport::Server::builder()));
        Self { runtime, receiver, server }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }
}

/// Stores settings of the observability worker, and waits until they are taken: the rules that are asked for say so.
pub(crate) fn observe(rig: &Rig, mut settings: Value) {
    let mark = format!("mark-{}", now_ns());
    let mut rules = settings["sampling"]["rules"].as_array().cloned().unwrap_or_default();
    rules.push(json!({"operation": mark, "rate": 1}));
    settings["sampling"]["rules"] = json!(rules);
    settings["prometheus"] = settings.get("prometheus").cloned().unwrap_or_else(|| json!({"enabled": false}));
    crate::store(rig, "iii-observability", &settings);
    until(rig, "settings are taken", || {
        let rules = rig.call("engine::sampling::rules", &json!({}));
        rules["traces"]["rules"].as_array()?.iter().any(|rule| rule["operation"] == mark.as_str()).then_some(())
    });
}
