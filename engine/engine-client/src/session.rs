//! The connection's one task: connects, registers, carries calls both ways, and starts over.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use engine_protocol::{
    Action, ErrorBody, InvocationResult, InvokeFunction, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Message, Payload, decode,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tracing::debug;
use uuid::Uuid;

use crate::client::{Call, CallError, Command, Shared, Status};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Answer = oneshot::Sender<Result<Option<Box<RawValue>>, CallError>>;

pub(crate) fn limits() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES)).max_frame_size(Some(MAX_FRAME_BYTES))
}

/// Opens a WebSocket without Nagle's delays.
pub(crate) async fn dial(url: &str) -> Result<Socket, String> {
    let connecting = tokio_tungstenite::connect_async_with_config(url, Some(limits()), true);
    match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CONNECT_PATIENCE.as_secs())),
    }
}

/// Runs until every client is dropped, or one says to stop.
pub(crate) async fn run(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let dialled = shared.stop.run_until_cancelled(dial(&shared.config.url)).await;
        match dialled {
            None => return,
            Some(Ok(socket)) => {
                pause = FIRST_PAUSE;
                let ended = converse(&shared, socket, &mut commands).await;
                if matches!(ended, Ended::Stopped) {
                    return;
                }
                shared.status.send_replace(Status::Connecting);
            }
            Some(Err(reason)) => {
                debug!(url = shared.config.url, reason, "could not connect");
                shared.status.send_replace(Status::Failed(reason));
            }
        }
        // Jitter from an id: many workers that lose one engine must not come back at one moment.
        let jitter = Duration::from_millis(u64::from(Uuid::new_v4().as_bytes()[0]));
        tokio::select! {
            () = tokio::time::sleep(pause + jitter) => {}
            () = shared.stop.cancelled() => return,
            // Calls made meanwhile wait in the queue, as far as it reaches; the last client's end is noticed.
            () = closed(&commands) => return,
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Resolves when no client is left.
async fn closed(commands: &mpsc::Receiver<Command>) {
    while !commands.is_closed() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

enum Ended {
    Lost,
    Stopped,
}

async fn converse(shared: &Arc<Shared>, socket: Socket, commands: &mut mpsc::Receiver<Command>) -> Ended {
    let (mut sink, mut stream) = socket.split();
    // First the status, then the list: what is registered in between is said twice rather than not at all.
    shared.status.send_replace(Status::Connected);
    for message in introduction(shared) {
        if sink.feed(Frame::text(message.encode())).await.is_err() {
            return Ended::Lost;
        }
    }
    if sink.flush().await.is_err() {
        return Ended::Lost;
    }
    let mut waiting: HashMap<Uuid, Answer> = HashMap::new();
    let (results, mut finished) = mpsc::channel::<InvocationResult>(1024);
    loop {
        tokio::select! {
            command = commands.recv() => {
                let message = match command {
                    None => {
                        let _ = sink.close().await;
                        return Ended::Stopped;
                    }
                    Some(Command::Forget(id)) => {
                        waiting.remove(&id);
                        continue;
                    }
                    Some(Command::Send(message)) => message,
                    Some(Command::Call { call, answer }) => {
                        if let Some(id) = call.invocation_id {
                            waiting.insert(id, answer);
                        }
                        Message::from(call)
                    }
                };
                if sink.send(Frame::text(message.encode())).await.is_err() {
                    return Ended::Lost;
                }
            }
            Some(result) = finished.recv() => {
                if sink.send(Frame::text(Message::from(result).encode())).await.is_err() {
                    return Ended::Lost;
                }
            }
            frame = stream.next() => match frame {
                Some(Ok(Frame::Text(text))) => receive(shared, &text, &mut waiting, &results),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return Ended::Lost,
                Some(Ok(_)) => {}
            },
            () = shared.stop.cancelled() => {
                let _ = sink.close().await;
                return Ended::Stopped;
            }
        }
    }
}

/// Everything registered so far, then who we are.
fn introduction(shared: &Shared) -> Vec<Message> {
    let registrations = shared.registrations.lock().unwrap_or_else(PoisonError::into_inner);
    let kinds = registrations.trigger_types.values().cloned().map(Message::RegisterTriggerType);
    let functions = registrations.functions.values().map(|(message, _)| Message::from(message.clone()));
    let triggers = registrations.triggers.values().cloned().map(Message::from);
    let mut messages: Vec<Message> = kinds.chain(functions).chain(triggers).collect();
    let about = serde_json::json!({
        "runtime": "rust", "version": env!("CARGO_PKG_VERSION"), "name": shared.config.name,
        "description": shared.config.description, "os": std::env::consts::OS, "pid": std::process::id(),
    });
    messages.push(Message::from(InvokeFunction {
        invocation_id: None,
        function_id: "engine::workers::register".into(),
        data: engine_protocol::raw(&about).ok().map(Payload::from),
        traceparent: None,
        baggage: None,
        action: Some(Action::Void),
        metadata: None,
    }));
    messages
}

fn receive(shared: &Shared, text: &str, waiting: &mut HashMap<Uuid, Answer>, results: &mpsc::Sender<InvocationResult>) {
    match decode(text) {
        Ok(Message::InvocationResult(result)) => {
            if let Some(answer) = waiting.remove(&result.invocation_id) {
                let outcome = match result.error {
                    Some(error) => Err(CallError::Remote(error)),
                    None => Ok(result.result.map(Payload::into_raw)),
                };
                // Dropped by a caller that no longer waits.
                let _ = answer.send(outcome);
            }
        }
        Ok(Message::InvokeFunction(call)) => answer_call(shared, *call, results),
        Ok(_) => {}
        Err(error) => debug!(%error, "message of the engine dropped"),
    }
}

fn answer_call(shared: &Shared, call: InvokeFunction, results: &mpsc::Sender<InvocationResult>) {
    let InvokeFunction { invocation_id, function_id, data, traceparent, baggage, .. } = call;
    let handler = {
        let registrations = shared.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        registrations.functions.get(&function_id).map(|(_, handler)| Arc::clone(handler))
    };
    let results = results.clone();
    tokio::spawn(async move {
        let outcome = match handler {
            Some(handler) => {
                let data = data.map_or_else(|| RawValue::NULL.to_owned(), Payload::into_raw);
                handler.call(Call { function_id: function_id.clone(), data }).await
            }
            None => Err(ErrorBody::new("function_not_found", format!("function `{function_id}` is gone"))),
        };
        let Some(invocation_id) = invocation_id else { return };
        let (result, error) = match outcome {
            Ok(result) => (result.map(Payload::from), None),
            Err(error) => (None, Some(error)),
        };
        // A connection that is lost has lost the caller as well.
        let _ =
            results.send(InvocationResult { invocation_id, function_id, result, error, traceparent, baggage }).await;
    });
}
