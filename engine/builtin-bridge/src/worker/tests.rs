//! The bridge between an engine that is pretended here, and one that is pretended behind a real WebSocket.

use std::sync::Mutex;

use engine_builtin::{Answer, ChannelRef, EngineApi, PipeReader, PipeWriter, Stats};
use engine_protocol::{Action, InvocationResult, InvokeFunction, Message, Payload};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use uuid::Uuid;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Its one function, `here::greet`, fails when there is nobody to greet.
#[derive(Default)]
struct Here {
    called: Mutex<Vec<String>>,
}

impl EngineApi for Here {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        self.called.lock().expect("no panic").push(invocation.function_id);
        let answer = match invocation.data.get() {
            "null" => Err(ErrorBody { stacktrace: Some("at line 1".into()), ..ErrorBody::new("nobody", "to greet") }),
            name => Ok(to_raw_value(&format!("hello {}", name.trim_matches('"'))).ok()),
        };
        async { answer }.boxed()
    }

    fn knows(&self, _: &str) -> bool {
        true
    }

    fn pipe_to_worker(&self, _: usize) -> (PipeWriter, ChannelRef) {
        panic!("the bridge needs no channel")
    }

    fn pipe_from_worker(&self, _: usize) -> (ChannelRef, PipeReader) {
        panic!("the bridge needs no channel")
    }

    fn withdraw(&self, _: &engine_builtin::ChannelRef) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn version(&self) -> &'static str {
        "0"
    }
}

/// The other engine's end of the connection.
struct There(WebSocketStream<TcpStream>);

impl There {
    async fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = in_time(listener.accept()).await.expect("a connection");
        Self(in_time(tokio_tungstenite::accept_async(socket)).await.expect("a WebSocket"))
    }

    async fn send(&mut self, message: Message) {
        self.0.send(Frame::text(message.encode())).await.expect("sent");
    }

    /// The next message that `wanted` takes; what else is said meanwhile is of no interest.
    async fn next<T>(&mut self, wanted: impl Fn(Message) -> Option<T>) -> T {
        loop {
            let frame = in_time(self.0.next()).await.expect("a frame").expect("no error");
            if let Frame::Text(text) = frame
                && let Some(found) = wanted(engine_protocol::decode(&text).expect("a message"))
            {
                return found;
            }
        }
    }

    async fn next_call(&mut self) -> InvokeFunction {
        self.next(|message| match message {
            Message::InvokeFunction(call) if !call.function_id.starts_with("engine::") => Some(*call),
            _ => None,
        })
        .await
    }

    async fn answer(&mut self, call: &InvokeFunction, answer: Result<Value, ErrorBody>) {
        let (result, error) = match answer {
            Ok(value) => (to_raw_value(&value).ok(), None),
            Err(error) => (None, Some(error)),
        };
        self.send(Message::from(InvocationResult {
            invocation_id: call.invocation_id.expect("an answer is wanted"),
            function_id: call.function_id.clone(),
            result: result.map(Payload::from),
            error,
            traceparent: None,
            baggage: None,
        }))
        .await;
    }

    async fn call(&mut self, function_id: &str, data: Value) -> InvocationResult {
        self.send(Message::from(InvokeFunction {
            invocation_id: Some(Uuid::new_v4()),
            function_id: function_id.into(),
            data: to_raw_value(&data).ok().map(Payload::from),
            traceparent: None,
            baggage: None,
            action: None,
            metadata: None,
        }))
        .await;
        self.next(|message| match message {
            Message::InvocationResult(result) => Some(*result),
            _ => None,
        })
        .await
    }

    async fn registered(&mut self) -> String {
        self.next(|message| match message {
            Message::RegisterFunction(function) => Some(function.id),
            _ => None,
        })
        .await
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happened in time")
}

async fn bridge(mut settings: Value) -> (Arc<dyn Builtin>, Arc<Here>, TcpListener) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    settings["url"] = json!(format!("ws://{}", listener.local_addr().expect("an address")));
    let here = Arc::new(Here::default());
    let bridge = create(Arc::clone(&here) as Engine, settings).await.expect("a bridge");
    bridge.start().await.expect("started");
    (bridge, here, listener)
}

/// As the engine does it.
fn call(bridge: &Arc<dyn Builtin>, function_id: &str, data: Value) -> BoxFuture<'static, Answer> {
    let data = to_raw_value(&data).ok();
    match bridge.call(Call { function_id: function_id.into(), data, trace: Trace::default(), caller: None }) {
        Reply::Now(answer) => async { answer }.boxed(),
        Reply::Later(answer) => in_time(answer).boxed(),
    }
}

fn shown(answer: Answer) -> Result<Option<String>, (String, String)> {
    answer.map(|data| data.map(|data| data.get().to_owned())).map_err(|error| (error.code, error.message))
}

#[tokio::test]
async fn a_call_goes_over_the_bridge_and_its_result_comes_back() {
    let (bridge, _, listener) = bridge(json!({})).await;
    let mut there = There::accept(&listener).await;
    let answer = tokio::spawn(call(
        &bridge,
        "bridge.invoke",
        json!({ "function_id": "far::add", "data": [1, 2], "_caller_worker_id": "w" }),
    ));
    let seen = there.next_call().await;
    assert_eq!((seen.function_id.as_str(), seen.data.as_ref().expect("data").text()), ("far::add", "[1,2]"));
    there.answer(&seen, Ok(json!(3))).await;
    assert_eq!(shown(answer.await.expect("no panic")), Ok(Some("3".into())));
}

#[tokio::test]
async fn failures_are_bridge_errors_with_what_the_other_side_said() {
    let (bridge, _, listener) = bridge(json!({})).await;
    let mut there = There::accept(&listener).await;
    let answer = tokio::spawn(call(&bridge, "bridge.invoke", json!({ "function_id": "far::add" })));
    let seen = there.next_call().await;
    there.answer(&seen, Err(ErrorBody::new("function_not_found", "who?"))).await;
    let wanted = ("bridge_error".to_owned(), "function_not_found: who?".to_owned());
    assert_eq!(shown(answer.await.expect("no panic")), Err(wanted));

    let late = call(&bridge, "bridge.invoke", json!({ "function_id": "far::silent", "timeout_ms": 100 })).await;
    let wanted = ("bridge_error".to_owned(), "no response from `far::silent` within 100 ms".to_owned());
    assert_eq!(shown(late), Err(wanted));

    for bad in [json!(null), json!({}), json!({ "function_id": 5 }), json!({ "function_id": "f", "timeout_ms": -1 })] {
        let error = call(&bridge, "bridge.invoke", bad).await.expect_err("refused");
        assert_eq!(error.code, "deserialization_error");
    }
}

#[tokio::test]
async fn a_call_without_an_answer_is_only_sent() {
    let (bridge, _, listener) = bridge(json!({})).await;
    let mut there = There::accept(&listener).await;
    let sent = call(&bridge, "bridge.invoke_async", json!({ "function_id": "far::log", "data": "x" })).await;
    assert_eq!(shown(sent), Ok(None));
    let seen = there.next_call().await;
    assert_eq!((seen.function_id.as_str(), seen.action), ("far::log", Some(Action::Void)));
}

#[tokio::test]
async fn a_forward_is_a_function_here_that_runs_there() {
    let forward = json!([{ "local_function": "math::add", "remote_function": "far::add", "timeout_ms": 100 }]);
    let (bridge, _, listener) = bridge(json!({ "forward": forward })).await;
    let ids: Vec<String> = bridge.functions().into_iter().map(|function| function.id).collect();
    assert_eq!(ids, ["bridge.invoke", "bridge.invoke_async", "math::add"]);
    let mut there = There::accept(&listener).await;
    let late = call(&bridge, "math::add", json!({ "a": 1.50 })).await.expect_err("no answer");
    assert_eq!(late.code, "bridge_error");
    let seen = there.next_call().await;
    assert_eq!((seen.function_id.as_str(), seen.data.as_ref().expect("data").text()), ("far::add", r#"{"a":1.5}"#));
}

#[tokio::test]
async fn an_exposed_function_is_called_from_there_and_nothing_else_is() {
    let expose = json!([{ "local_function": "here::greet", "remote_function": "greet" }]);
    let (bridge, here, listener) = bridge(json!({ "expose": expose })).await;
    let mut there = There::accept(&listener).await;
    assert_eq!(there.registered().await, "greet");
    assert_eq!(there.call("greet", json!("Ann")).await.result.expect("a result").text(), r#""hello Ann""#);
    let failed = there.call("greet", Value::Null).await.error.expect("an error");
    let wanted = ErrorBody { stacktrace: Some("at line 1".into()), ..ErrorBody::new("nobody", "to greet") };
    assert_eq!(failed, wanted, "errors come through as they are");
    let hidden = there.call("here::secret", Value::Null).await.error.expect("an error");
    assert_eq!(hidden.code, "function_not_found");
    assert_eq!(*here.called.lock().expect("no panic"), ["here::greet", "here::greet"]);
    bridge.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_lost_is_made_again_with_all_that_was_said() {
    let (bridge, _, listener) = bridge(json!({ "expose": [{ "local_function": "here::greet" }] })).await;
    let mut there = There::accept(&listener).await;
    let answer = tokio::spawn(call(&bridge, "bridge.invoke", json!({ "function_id": "far::add" })));
    there.next_call().await;
    drop(there);
    assert_eq!(answer.await.expect("no panic").expect_err("lost").code, "bridge_error");
    let mut there = There::accept(&listener).await;
    assert_eq!(there.registered().await, "here::greet");
    bridge.stop().await;
}
