//! What is no message, no frame, or too much of either.

use scenarios::{Lost, RawWorker};
use serde_json::{Value, json};
use test_rig::Rig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{beside, worker};

const MIB: usize = 1 << 20;

/// Each with a field that its kind cannot do without.
const REQUIRED: [(&str, &str); 14] = [
    ("registerfunction", "id"),
    ("unregisterfunction", "id"),
    ("registertriggertype", "id"),
    ("unregistertriggertype", "id"),
    ("registertrigger", "id"),
    ("registertrigger", "trigger_type"),
    ("registertrigger", "function_id"),
    ("unregistertrigger", "id"),
    ("triggerregistrationresult", "id"),
    ("invokefunction", "function_id"),
    ("invocationresult", "invocation_id"),
    ("reattach", "previous_worker_id"),
    ("workerregistered", "worker_id"),
    ("error", "error"),
];

/// A message in which all is well but for `changed`.
fn message_with(kind: &str, field: &str, changed: Option<Value>) -> String {
    let mut message = json!({
        "type": kind, "id": "a::b", "trigger_type": "t", "function_id": "a::b",
        "invocation_id": "0192d6f0-0000-7000-8000-000000000001", "worker_id": "0192d6f0-0000-7000-8000-000000000001",
        "previous_worker_id": "0192d6f0-0000-7000-8000-000000000001", "error": { "code": "x", "message": "y" },
    });
    let fields = message.as_object_mut().expect("an object");
    match changed {
        Some(value) => drop(fields.insert(field.to_owned(), value)),
        None => drop(fields.remove(field)),
    }
    message.to_string()
}

/// Says each text; none of them may be answered, and the connection must be as good as before.
async fn are_dropped(worker: &mut RawWorker, texts: impl IntoIterator<Item = String>) {
    for text in texts {
        let shown: String = text.chars().take(80).collect();
        worker.say_text(text).await.expect("connected");
        let heard = worker.heard_until_now().await.unwrap_or_else(|lost| panic!("{lost:?} after {shown}"));
        assert_eq!(heard, [Value::Null; 0], "after {shown}");
    }
    let listed = worker.call("engine::workers::list", &json!({})).await.expect("connected");
    assert!(listed.is_ok(), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_dropped_and_the_connection_kept() {
    let (rig, bystander) = beside("").await;
    let deep = format!(r#"{{"type":"invokefunction","function_id":"a","data":{}}}"#, "[".repeat(100_000));
    let texts = [
        "",
        " \n",
        "{",
        "}",
        "[]",
        "null",
        "7",
        "\"ping\"",
        "nonsense",
        "{\"type\":",
        "{\"type\":\"ping\"",
        "\u{0}",
        r#"{"type":"ping"}{"type":"ping"}"#,
        r#"{"type":"ping",}"#,
        r#"{"type":"invokefunction","function_id":"a","data":}"#,
        r#"{"type":"invokefunction","function_id":"a","data":{"a":01}}"#,
        r#"{'type':'ping'}"#,
        &deep,
    ];
    let mut worker = worker(&rig).await;
    are_dropped(&mut worker, texts.map(str::to_owned)).await;
    worker.say_bytes(vec![0xff, 0xfe, 0x00, 0x80]).await.expect("connected");
    worker.say_bytes(b"OTLPnonsense".to_vec()).await.expect("connected");
    are_dropped(&mut worker, []).await;
    bystander.noticed_nothing(&rig).await;
    assert!(rig.log().contains("message dropped"), "the log says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_types_are_dropped_and_the_connection_kept() {
    let (rig, bystander) = beside("").await;
    let kinds =
        [json!("observe"), json!(""), json!("PING"), json!(null), json!(7), json!({}), json!("invokefunction\u{0}")];
    let mut worker = worker(&rig).await;
    are_dropped(&mut worker, kinds.map(|kind| json!({ "type": kind, "id": "a::b" }).to_string())).await;
    are_dropped(&mut worker, [json!({ "id": "a::b" }).to_string()]).await;
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_with_missing_or_wrong_fields_are_dropped_and_the_connection_kept() {
    let (rig, bystander) = beside("").await;
    let mut worker = worker(&rig).await;
    are_dropped(&mut worker, REQUIRED.map(|(kind, field)| message_with(kind, field, None))).await;
    for wrong in [json!(7), json!([]), json!({}), json!(true)] {
        are_dropped(&mut worker, REQUIRED.map(|(kind, field)| message_with(kind, field, Some(wrong.clone())))).await;
    }
    for (field, wrong) in [("invocation_id", json!("no uuid")), ("action", json!("void")), ("traceparent", json!([]))] {
        are_dropped(&mut worker, [message_with("invokefunction", field, Some(wrong))]).await;
    }
    bystander.noticed_nothing(&rig).await;
}

/// A connection after its handshake.
async fn shaken(rig: &Rig) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", rig.port())).await.expect("connected");
    let request = "GET / HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut said = Vec::new();
    while !said.windows(4).any(|four| four == b"\r\n\r\n") {
        assert!(socket.read_buf(&mut said).await.expect("read") > 0, "no handshake");
    }
    socket
}

/// The engine ends the connection, whatever it says before.
async fn is_ended(mut socket: TcpStream, why: &str) {
    let ending = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        let mut said = [0; 4096];
        while socket.read(&mut said).await.is_ok_and(|length| length > 0) {}
    });
    assert!(ending.await.is_ok(), "still there after {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_frames_end_their_own_connection() {
    let (rig, bystander) = beside("").await;
    let masked = |first: u8, length: &[u8]| [&[first], length, &[0; 4]].concat();
    let cases: [(&str, Vec<u8>); 8] = [
        ("a frame without a mask", vec![0x81, 2, b'{', b'}']),
        ("reserved bits", masked(0xf1, &[0x80])),
        ("a reserved opcode", masked(0x83, &[0x80])),
        ("a ping in pieces", masked(0x09, &[0x80])),
        ("a long ping", masked(0x89, &[0xfe, 0, 126])),
        ("a piece without a beginning", masked(0x80, &[0x80])),
        ("text that is not UTF-8", [masked(0x81, &[0x82]), vec![0xff, 0xff]].concat()),
        ("random bytes", (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
    ];
    for (what, bytes) in cases {
        let mut socket = shaken(&rig).await;
        // The engine may end it before it has taken everything.
        let _ = socket.write_all(&bytes).await;
        is_ended(socket, what).await;
    }
    for request in
        ["\u{0}\u{1}\u{2}\u{3}\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "SSH-2.0-x\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(("127.0.0.1", rig.port())).await.expect("connected");
        let _ = socket.write_all(request.as_bytes()).await;
        is_ended(socket, request).await;
    }
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_asks_for_nothing_is_sent_away() {
    let (rig, bystander) = beside("").await;
    let silent = TcpStream::connect(("127.0.0.1", rig.port())).await.expect("connected");
    let mut halfway = TcpStream::connect(("127.0.0.1", rig.port())).await.expect("connected");
    halfway.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.expect("written");
    tokio::join!(is_ended(silent, "silence"), is_ended(halfway, "half a request"));
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_64_mib_ends_its_own_connection_before_it_is_read() {
    let (rig, bystander) = beside("").await;
    for length in [64 * MIB as u64, 16 * MIB as u64 + 1, u64::MAX] {
        let mut socket = shaken(&rig).await;
        let header = [&[0x81, 0xff], &length.to_be_bytes()[..], &[0; 4]].concat();
        socket.write_all(&header).await.expect("written");
        is_ended(socket, "the header of a large frame").await;
    }
    bystander.noticed_nothing(&rig).await;
}

fn call_with(bytes: usize) -> String {
    let message = json!({
        "type": "invokefunction", "function_id": "big::echo", "invocation_id": "0192d6f0-0000-7000-8000-000000000001",
        "data": { "text": "x".repeat(bytes) },
    });
    message.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_nearly_64_mib_in_frames_arrives_in_frames_and_is_answered() {
    let (rig, bystander) = beside("").await;
    let (mut caller, mut echo) = (worker(&rig).await, worker(&rig).await);
    echo.register("big::echo").await.expect("connected");
    echo.heard_until_now().await.expect("connected");
    let text = call_with(63 * MIB);
    caller.say_in_pieces(&text, 15 * MIB).await.expect("connected");
    let call = echo.hear_call().await.expect("the call, in frames that an SDK takes");
    assert_eq!(call["data"]["text"].as_str().map(str::len), Some(63 * MIB));
    echo.answer(&call, &json!("heard")).await.expect("connected");
    let answer = caller.answer_to("0192d6f0-0000-7000-8000-000000000001").await.expect("connected");
    assert_eq!(answer, Ok(json!("heard")));
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_64_mib_ends_its_own_connection() {
    let (rig, bystander) = beside("").await;
    let mut large = worker(&rig).await;
    let said = large.say_in_pieces(&call_with(65 * MIB), 15 * MIB).await;
    // It may be ended while it speaks.
    assert!(matches!(said, Ok(()) | Err(Lost::Ended)), "{said:?}");
    large.ended().await.expect("ended");
    bystander.noticed_nothing(&rig).await;
}
