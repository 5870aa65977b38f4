//! Export to a real OTLP receiver, over both protocols, with and without TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use engine_builtin::{Answer, BoxFuture, Builtin, ChannelRef, EngineApi, Invocation, PipeReader, PipeWriter, Stats};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use serde_json::{Value, json};
use test_rig::{OtlpReceiver, OtlpServer, attribute};
use tokio::net::TcpListener;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::Roots;
use crate::Observability;

const PATIENCE: Duration = Duration::from_secs(60);

struct Quiet;

impl EngineApi for Quiet {
    fn call(&self, _: Invocation) -> BoxFuture<'static, Answer> {
        Box::pin(async { Ok(None) })
    }

    fn knows(&self, _: &str) -> bool {
        false
    }

    fn pipe_to_worker(&self, _: usize) -> (PipeWriter, ChannelRef) {
        panic!("no channels here")
    }

    fn pipe_from_worker(&self, _: usize) -> (ChannelRef, PipeReader) {
        panic!("no channels here")
    }

    fn withdraw(&self, _: &engine_builtin::ChannelRef) {}

    fn stats(&self) -> Stats {
        Stats { calls: 5, ..Stats::default() }
    }

    fn version(&self) -> &'static str {
        "test"
    }
}

/// A throw-away authority, and a server's certificate by it; the authority is the same for the whole process.
struct Authority {
    root: rustls::pki_types::CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Authority { root: issuer.der().clone(), certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    })
}

fn private_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(authority().root.clone()).expect("a root");
    roots
}

/// Serves until the server is dropped.
async fn grpc(receiver: &OtlpReceiver, address: &str, tls: bool) -> OtlpServer {
    let mut server = Server::builder();
    if tls {
        let identity = Identity::from_pem(&authority().certificate_pem, &authority().key_pem);
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("TLS");
    }
    receiver.serve(address, server).await
}

/// OTLP over HTTP/1.1; `statuses` are answered first, one a request.
async fn http(receiver: &OtlpReceiver, statuses: Vec<u16>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (receiver, statuses) = (receiver.clone(), Arc::new(Mutex::new(statuses)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let (receiver, statuses) = (receiver.clone(), Arc::clone(&statuses));
            let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let (receiver, statuses) = (receiver.clone(), Arc::clone(&statuses));
                async move {
                    let refused = statuses.lock().expect("a lock").pop();
                    let mut answer = hyper::Response::new(Full::new(bytes::Bytes::new()));
                    if let Some(status) = refused {
                        *answer.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
                        return Ok::<_, hyper::Error>(answer);
                    }
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let metadata = tonic::metadata::MetadataMap::from_headers(parts.headers);
                    receiver.note(&metadata, body, |received, body| match parts.uri.path() {
                        "/otlp/v1/traces" => received.traces(Message::decode(body).expect("traces")),
                        "/otlp/v1/logs" => received.logs(Message::decode(body).expect("logs")),
                        "/otlp/v1/metrics" => received.metrics(Message::decode(body).expect("metrics")),
                        path => panic!("no such path: {path}"),
                    });
                    Ok(answer)
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    address
}

async fn started(endpoint: String, protocol: &'static str, roots: Roots) -> Arc<Observability> {
    let settings = json!({
        "endpoint": endpoint, "exporter": "both", "metrics_exporter": "otlp", "logs_exporter": "both",
        "logs_flush_interval_ms": 100, "logs_console_output": false, "prometheus": {"enabled": false},
    });
    let environment = move |name: &str| match name {
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("authorization=Bearer%20secret".to_owned()),
        _ => None,
    };
    let worker = Observability::open(Arc::new(Quiet), settings, environment, roots).expect("settings");
    worker.start().await.expect("a start");
    worker
}

fn span(name: &str) -> Vec<u8> {
    let request = json!({"resourceSpans": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
        "scopeSpans": [{"spans": [{
            "traceId": "3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f", "spanId": "9a8b7c6d5e4f3a2b", "name": name, "kind": 3,
            "startTimeUnixNano": "7", "attributes": [{"key": "n", "value": {"intValue": "5"}}],
            "status": {"code": 2, "message": "broken"},
        }]}],
    }]});
    format!("OTLP{request}").into_bytes()
}

fn log(body: &str) -> Vec<u8> {
    let record = json!({"body": {"stringValue": body}, "severityNumber": 9});
    format!("LOGS{}", json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})).into_bytes()
}

fn metric(name: &str) -> Vec<u8> {
    let metric: Value = json!({"name": name, "gauge": {"dataPoints": [{"asDouble": 1.5}]}});
    format!("MTRC{}", json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})).into_bytes()
}

/// Sends one of each kind and sees it arrive, with its headers and types.
async fn one_of_each_arrives(worker: &Observability, receiver: &OtlpReceiver) {
    for frame in [span("work"), log("hello"), metric("carts")] {
        worker.ingest(&frame).expect("taken");
    }
    let received = receiver
        .until(|received| {
            received.span_names().contains(&"work")
                && received.log_bodies().contains(&"hello")
                && received.metric_names().contains(&"carts")
                && received.metric_names().contains(&"iii.invocations.total")
        })
        .await;
    assert!(received.authorization.iter().all(|value| value == "Bearer secret"), "{:?}", received.authorization);
    assert!(received.spans.iter().all(|(resource, _)| attribute(resource, "service.name") == Some("shop")));
    let span = received.spans.into_iter().next_back().expect("a span").1;
    assert_eq!((span.kind, span.start_time_unix_nano, span.trace_id.len(), span.span_id.len()), (3, 7, 16, 8));
    assert_eq!(span.status.expect("a status").code, 2);
    assert!(format!("{:?}", span.attributes).contains("IntValue(5)"));
}

#[tokio::test]
async fn spans_logs_and_metrics_arrive_over_grpc() {
    let receiver = OtlpReceiver::default();
    let server = grpc(&receiver, "127.0.0.1:0", false).await;
    let worker = started(format!("http://{}", server.address), "grpc", super::host_roots).await;
    one_of_each_arrives(&worker, &receiver).await;
    worker.stop().await;
}

#[tokio::test]
async fn spans_logs_and_metrics_arrive_over_http() {
    let receiver = OtlpReceiver::default();
    let address = http(&receiver, Vec::new()).await;
    let worker = started(format!("http://{address}/otlp/v1/traces"), "http/protobuf", super::host_roots).await;
    one_of_each_arrives(&worker, &receiver).await;
    worker.stop().await;
}

#[tokio::test]
async fn tls_trusts_the_authorities_it_is_given_and_no_other() {
    let receiver = OtlpReceiver::default();
    let server = grpc(&receiver, "127.0.0.1:0", true).await;
    let endpoint = format!("https://localhost:{}", server.address.port());
    let stranger = started(endpoint.clone(), "grpc", RootCertStore::empty).await;
    stranger.ingest(&span("stranger")).expect("taken");
    stranger.stop().await;
    let worker = started(endpoint, "grpc", private_roots).await;
    one_of_each_arrives(&worker, &receiver).await;
    worker.stop().await;
    assert!(!receiver.received().span_names().contains(&"stranger"));
}

#[tokio::test]
async fn nothing_queued_is_lost_while_the_receiver_is_away() {
    let receiver = OtlpReceiver::default();
    let server = grpc(&receiver, "127.0.0.1:0", false).await;
    let worker = started(format!("http://{}", server.address), "grpc", super::host_roots).await;
    worker.ingest(&span("before")).expect("taken");
    receiver.until(|received| received.spans.len() == 1).await;
    let address = server.address;
    drop(server);
    // Until nobody listens there any more.
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    for number in 0..2000 {
        while worker.ingest(&span(&format!("away {number}"))).is_err() {
            tokio::task::yield_now().await;
        }
    }
    // Long enough for attempts that fail; it is what is tested.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _server = grpc(&receiver, &address.to_string(), false).await;
    let received = receiver.until(|received| received.spans.len() > 2000).await;
    let expected: Vec<String> =
        std::iter::once("before".to_owned()).chain((0..2000).map(|number| format!("away {number}"))).collect();
    assert_eq!(received.span_names(), expected, "each once, in order");
    worker.stop().await;
}

#[tokio::test]
async fn busy_answers_are_tried_again_and_refusals_are_not() {
    let receiver = OtlpReceiver::default();
    // The last is answered first.
    let address = http(&receiver, vec![429, 503]).await;
    let worker = started_quiet(format!("http://{address}/otlp")).await;
    worker.ingest(&span("again")).expect("taken");
    receiver.until(|received| received.span_names() == ["again"]).await;
    worker.stop().await;

    let receiver = OtlpReceiver::default();
    let address = http(&receiver, vec![400]).await;
    let worker = started_quiet(format!("http://{address}/otlp")).await;
    worker.ingest(&span("refused")).expect("taken");
    let counted = async {
        while !worker.state_for_tests().prometheus_page().contains("iii_telemetry_export_dropped_total 1\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("the refused span is counted");
    worker.ingest(&span("next")).expect("taken");
    receiver.until(|received| received.span_names() == ["next"]).await;
    worker.stop().await;
}

/// Sends only spans, over HTTP.
async fn started_quiet(endpoint: String) -> Arc<Observability> {
    let settings = json!({"endpoint": endpoint, "exporter": "otlp", "prometheus": {"enabled": false}});
    let environment = |name: &str| (name == "OTEL_EXPORTER_OTLP_PROTOCOL").then(|| "http/protobuf".to_owned());
    let worker = Observability::open(Arc::new(Quiet), settings, environment, super::host_roots).expect("settings");
    worker.start().await.expect("a start");
    worker
}

#[tokio::test]
async fn what_is_queued_is_sent_before_the_end() {
    let receiver = OtlpReceiver::default();
    let server = grpc(&receiver, "127.0.0.1:0", false).await;
    let worker = started(format!("http://{}", server.address), "grpc", super::host_roots).await;
    (0..700).for_each(|number| worker.ingest(&span(&number.to_string())).expect("taken"));
    worker.stop().await;
    assert_eq!(receiver.received().spans.len(), 700);
}

#[tokio::test]
async fn logs_go_where_changed_settings_say() {
    let receiver = OtlpReceiver::default();
    let server = grpc(&receiver, "127.0.0.1:0", false).await;
    let worker = started(format!("http://{}", server.address), "grpc", super::host_roots).await;
    worker.ingest(&log("first")).expect("taken");
    receiver.until(|received| received.logs.len() == 1).await;
    let memory = json!({"logs_exporter": "memory", "prometheus": {"enabled": false}});
    worker.apply(memory).await.expect("applied");
    worker.ingest(&log("kept")).expect("taken");
    let both = json!({"logs_exporter": "both", "logs_batch_size": 1, "prometheus": {"enabled": false}});
    // The task that reads frames must have seen the one before.
    while worker.state_for_tests().logs().len() < 2 {
        tokio::task::yield_now().await;
    }
    worker.apply(both).await.expect("applied");
    worker.ingest(&log("second")).expect("taken");
    let received = receiver.until(|received| received.logs.len() == 2).await;
    assert_eq!(received.log_bodies(), ["first", "second"]);
    worker.stop().await;
}
