//! The bridge adapter, and another engine that it talks to.

use std::net::SocketAddr;
use std::sync::Arc;

use engine_builtin::{Builtin, Call, ErrorBody, Reply, Trace};
use engine_protocol::{InvocationResult, InvokeFunction, Message, Payload, decode};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::fake_engine::{ask, bind, done, quiet_engine, state, state_in_memory};
use crate::functions::answers_exactly;

/// An engine that knows the functions of `state`, or none.
async fn other_engine(state: Option<Arc<dyn Builtin>>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, state.clone()));
        }
    });
    address
}

async fn serve(socket: TcpStream, state: Option<Arc<dyn Builtin>>) {
    let mut socket = tokio_tungstenite::accept_async(socket).await.expect("a WebSocket");
    while let Some(Ok(frame)) = socket.next().await {
        let Frame::Text(text) = frame else { continue };
        let Ok(Message::InvokeFunction(call)) = decode(&text) else { continue };
        let InvokeFunction { invocation_id: Some(invocation_id), function_id, data, .. } = *call else { continue };
        let answer = match &state {
            None => Err(ErrorBody::new("function_not_found", "on purpose")),
            Some(state) => {
                let data = data.map(Payload::into_raw);
                let call = Call { function_id: function_id.clone(), data, trace: Trace::default(), caller: None };
                match state.call(call) {
                    Reply::Now(answer) => answer,
                    Reply::Later(answer) => answer.await,
                }
            }
        };
        let (result, error) = answer.map_or_else(|error| (None, Some(error)), |result| (result, None));
        let (traceparent, baggage) = (None, None);
        let result = result.map(Payload::from);
        let result = InvocationResult { invocation_id, function_id, result, error, traceparent, baggage };
        socket.send(Frame::text(Message::from(result).encode())).await.expect("sent");
    }
}

fn settings(other: SocketAddr) -> serde_json::Value {
    json!({"adapter": {"name": "bridge", "config": {"bridge_url": format!("ws://{other}")}}})
}

#[tokio::test]
async fn another_engine_answers_as_the_contract_says() {
    let other = other_engine(Some(state_in_memory().await)).await;
    answers_exactly(&state(quiet_engine().0, settings(other)).await).await;
}

#[tokio::test]
async fn writes_to_another_engine_fire_here() {
    let other = other_engine(Some(state_in_memory().await)).await;
    let (engine, mut called) = quiet_engine();
    let state = state(engine, settings(other)).await;
    bind(&state, "t", "on_change", json!({"scope": "s"}));
    done(&state, "set", json!({"scope": "s", "key": "k", "value": 1})).await;
    done(&state, "delete", json!({"scope": "s", "key": "k"})).await;
    assert_eq!(called.next().await.1["event_type"], "state:created");
    assert_eq!(called.next().await.1["event_type"], "state:deleted");
}

#[tokio::test]
async fn failures_there_have_their_codes_here() {
    let state = state(quiet_engine().0, settings(other_engine(None).await)).await;
    for (function, data, code) in [
        ("get", r#"{"scope":"s","key":"k"}"#, "GET_ERROR"),
        ("set", r#"{"scope":"s","key":"k","value":2}"#, "SET_ERROR"),
        ("delete", r#"{"scope":"s","key":"k"}"#, "DELETE_ERROR"),
        ("update", r#"{"scope":"s","key":"k","ops":[]}"#, "UPDATE_ERROR"),
        ("list", r#"{"scope":"s"}"#, "LIST_ERROR"),
        ("list_groups", "{}", "LIST_GROUPS_ERROR"),
    ] {
        assert_eq!(ask(&state, function, data).await, Err(code.into()));
    }
}
