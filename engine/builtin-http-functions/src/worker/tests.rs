//! Functions against real servers on loopback: friendly ones, and hostile ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use engine_builtin::{Answer, Raw, Trace};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::MAX_RESPONSE_BYTES;
use crate::invocation::Signature;

/// Set by cargo for every test, to `builtin-http-functions`.
const VARIABLE: &str = "CARGO_PKG_NAME";

#[derive(Debug)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: String,
}

/// Answers every request with the same bytes, and then closes.
struct Server {
    port: u16,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Server {
    async fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |mut socket| {
            let bytes = bytes.clone();
            async move {
                let _ = socket.write_all(&bytes).await;
            }
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (seen, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                if let Some(request) = read(&mut socket).await {
                    let _ = seen.send(request);
                    answer(socket).await;
                }
            }
        });
        Self { port, requests }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook?x=1", self.port)
    }
}

async fn read(socket: &mut TcpStream) -> Option<Request> {
    let mut text = String::new();
    loop {
        let mut piece = [0; 4096];
        let read = socket.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        text.push_str(std::str::from_utf8(&piece[..read]).ok()?);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut lines = head.lines();
        let line = lines.next()?.to_owned();
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.into()))
            .collect();
        let length: usize = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
        if body.len() >= length {
            return Some(Request { line, headers, body: body.to_owned() });
        }
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn raw(value: &Value) -> Raw {
    serde_json::value::to_raw_value(value).expect("JSON")
}

/// Allowed to talk to this machine.
fn open() -> HttpFunctions {
    let security = json!({ "security": { "block_private_ips": false, "require_https": false } });
    HttpFunctions::new(policy(security).expect("settings")).expect("a worker")
}

#[tokio::test]
async fn the_environment_is_closed_to_who_is_not_allowed_to_read_it() {
    let checked = async |allowed: Value| {
        let security = json!({ "security": { "block_private_ips": false, "env_allowlist": allowed } });
        let worker = HttpFunctions::new(policy(security).expect("settings")).expect("a worker");
        let auth = json!({ "type": "bearer", "token_key": VARIABLE });
        let invocation = json!({ "url": "https://127.0.0.1/", "auth": auth });
        worker.check("shop::order", &raw(&invocation)).await.map(drop).map_err(|error| error.code)
    };
    for allowed in [json!([]), json!(["SHOP_*"])] {
        assert_eq!(checked(allowed).await, Err("token_not_found".to_owned()));
    }
    assert_eq!(checked(json!(["SHOP_*", VARIABLE])).await, Ok(()));
}

async fn call(invocation: Value, data: Option<Value>) -> Answer {
    let function = open().check("shop::order", &raw(&invocation)).await?;
    function.call(data.as_ref().map(raw), Trace::default()).await
}

async fn error(invocation: Value) -> ErrorBody {
    call(invocation, None).await.expect_err("an error")
}

#[tokio::test]
async fn a_call_is_a_request_as_the_contract_says() {
    let mut server = Server::answering(http("200 OK", r#"{"id":7}"#)).await;
    let invocation =
        json!({ "url": server.url(), "headers": { "X-Shop": "north", "Content-Type": "application/vnd.shop+json" } });
    let function = open().check("shop::order", &raw(&invocation)).await.expect("allowed");
    let trace = Trace { traceparent: Some("00-aa-bb-01".into()), baggage: Some("bad\nvalue".into()) };
    let answer = function.call(Some(raw(&json!({ "n": 1 }))), trace).await.expect("a result");
    assert_eq!(answer.expect("a result").get(), r#"{"id":7}"#);
    let request = server.requests.recv().await.expect("a request");
    assert_eq!((request.line.as_str(), request.body.as_str()), ("POST /hook?x=1 HTTP/1.1", r#"{"n":1}"#));
    for (name, value) in [
        ("x-shop", "north"),
        ("content-type", "application/vnd.shop+json"),
        ("x-iii-function-path", "shop::order"),
        ("traceparent", "00-aa-bb-01"),
    ] {
        assert_eq!(request.headers[name], value);
    }
    assert!(Uuid::parse_str(&request.headers["x-iii-invocation-id"]).is_ok());
    assert!(request.headers["x-iii-timestamp"].parse::<u64>().is_ok());
    assert!(!request.headers.contains_key("baggage") && !request.headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_get_has_a_body_too_and_no_data_is_null() {
    let mut server = Server::answering(http("204 No Content", "")).await;
    assert!(call(json!({ "url": server.url(), "method": "GET" }), None).await.expect("an answer").is_none());
    let request = server.requests.recv().await.expect("a request");
    assert_eq!((request.line.as_str(), request.body.as_str()), ("GET /hook?x=1 HTTP/1.1", "null"));
}

#[tokio::test]
async fn each_way_to_prove_who_calls_is_in_the_headers() {
    let mut server = Server::answering(http("200 OK", "1")).await;
    for auth in [
        json!({ "type": "bearer", "token_key": VARIABLE }),
        json!({ "type": "api_key", "header": "X-Key", "value_key": VARIABLE }),
        json!({ "type": "hmac", "secret_key": VARIABLE }),
    ] {
        call(json!({ "url": server.url(), "auth": auth }), Some(json!("data"))).await.expect("a result");
    }
    let bearer = server.requests.recv().await.expect("a request");
    assert_eq!(bearer.headers["authorization"], "Bearer builtin-http-functions");
    let key = server.requests.recv().await.expect("a request");
    assert_eq!(key.headers["x-key"], "builtin-http-functions");
    let signed = server.requests.recv().await.expect("a request");
    let text = format!("{}:{}", signed.headers["x-iii-timestamp"], BASE64_STANDARD.encode(r#""data""#));
    let wanted = Signature::new("builtin-http-functions").expect("a key").of(&text);
    assert_eq!(signed.headers["x-iii-signature"], format!("sha256={wanted}"));
}

#[tokio::test]
async fn this_machine_and_plain_http_are_refused_by_default() {
    let strict = HttpFunctions::new(policy(Value::Null).expect("settings")).expect("a worker");
    for (url, why) in [
        ("http://example.com/", "require_https"),
        ("https://127.0.0.1/", "private address 127.0.0.1"),
        ("https://[::1]/", "private address ::1"),
        ("https://localhost/", "private address"),
    ] {
        let error = strict.check("f", &raw(&json!({ "url": url }))).await.err().expect("refused");
        assert_eq!(error.code, "url_validation_failed", "{url}");
        assert!(error.message.contains(why), "{}", error.message);
    }
}

/// Public when the function is registered, and then this machine's.
#[tokio::test]
async fn a_name_whose_address_changes_is_not_connected_to() {
    let mut server = Server::answering(http("200 OK", "1")).await;
    let mut policy = policy(json!({ "security": { "require_https": false } })).expect("settings");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    policy.lookup = Arc::new(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        // One good address does not make the other one good.
        let addresses: &[&str] = if first { &["93.184.216.34"] } else { &["93.184.216.34", "127.0.0.1"] };
        let addresses = addresses.iter().map(|address| address.parse::<IpAddr>().expect("an address")).collect();
        Box::pin(async { Ok(addresses) })
    });
    let worker = HttpFunctions::new(policy).expect("a worker");
    let invocation = json!({ "url": format!("http://rebind.test:{}/", server.port) });
    let function = worker.check("f", &raw(&invocation)).await.expect("allowed at first");
    let error = function.call(None, Trace::default()).await.expect_err("refused");
    assert_eq!(error.code, "url_validation_failed");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        2,
        "the name is resolved once for a registration, and once for a connection"
    );
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut elsewhere = Server::answering(http("200 OK", "1")).await;
    let location = format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url());
    let server = Server::answering(location).await;
    assert!(call(json!({ "url": server.url() }), None).await.expect("a success").is_none());
    assert!(elsewhere.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_failure_of_the_endpoint_is_the_callers() {
    let server =
        Server::answering(http("409 Conflict", r#"{"error":{"code":"sold_out","message":"none left"}}"#)).await;
    assert_eq!(error(json!({ "url": server.url() })).await, ErrorBody::new("sold_out", "none left"));
}

#[tokio::test]
async fn what_is_no_http_is_a_failed_request_and_does_not_show_the_urls_parameters() {
    for bytes in ["SSH-2.0-OpenSSH\r\n", "", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"]
    {
        let server = Server::answering(bytes).await;
        let error = error(json!({ "url": server.url() })).await;
        assert_eq!(error.code, "http_request_failed", "{bytes:?}");
        assert!(error.message.contains("POST http://127.0.0.1/hook: "), "{}", error.message);
        assert!(!error.message.contains("x=1"), "{}", error.message);
    }
    assert_eq!(error(json!({ "url": "http://127.0.0.1:1/" })).await.code, "http_request_failed");
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_a_failed_request() {
    let server = Server::answering("HTTP/1.1 400 no\r\n\r\n").await;
    let url = format!("https://127.0.0.1:{}/", server.port);
    assert_eq!(error(json!({ "url": url, "timeout_ms": 20_000 })).await.code, "http_request_failed");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_a_failed_response() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":").await;
    assert_eq!(error(json!({ "url": server.url() })).await.code, "http_response_failed");
}

#[tokio::test]
async fn a_response_without_end_is_given_up() {
    let server = Server::start(|mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let mut sent = 0_usize;
        let piece = vec![b' '; 1 << 20];
        while socket.write_all(&piece).await.is_ok() {
            sent += piece.len();
            assert!(sent < 10 * MAX_RESPONSE_BYTES, "it is read on and on");
        }
    })
    .await;
    let error = error(json!({ "url": server.url(), "timeout_ms": 60_000 })).await;
    assert_eq!(error.code, "http_response_failed");
    assert!(error.message.contains("more than"), "{}", error.message);
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up_after_the_functions_timeout() {
    let silent = Server::start(|socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let error_of = error(json!({ "url": silent.url(), "timeout_ms": 200 })).await;
    assert_eq!(error_of.code, "http_request_failed");
    assert!(error_of.message.ends_with("no answer within 200 ms"), "{}", error_of.message);
    let stalling = Server::start(|mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n12").await;
        std::future::pending::<()>().await;
    })
    .await;
    assert_eq!(error(json!({ "url": stalling.url(), "timeout_ms": 5000 })).await.code, "http_response_failed");
}
