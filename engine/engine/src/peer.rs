//! One worker's control connection: outside bytes stop being bytes here.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message as Frame, WebSocket};
use engine_protocol::{Message, decode, with_caller};
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::access::Access;
use crate::hub::{Hub, Origin, Outgoing, Seat};
use crate::pressure::Pressure;
use crate::progress::Progress;

/// A peer that takes nothing for this long is gone, whatever its socket says.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// Serves a worker until it leaves or `stop` is cancelled.
///
/// `progress` is the socket's.
pub(crate) async fn serve(
    socket: WebSocket,
    progress: Progress,
    hub: Arc<Hub>,
    access: Access,
    origin: Origin,
    stop: CancellationToken,
) {
    let seat = hub.open(origin.clone(), &stop);
    let conn = seat.conn;
    debug!(conn = conn.0, worker = origin.vm_worker, "worker connected");
    let (sink, mut stream) = socket.split();
    let Seat { outbound, pressure, stop, .. } = seat;
    let writing = write(sink, outbound, &pressure, &progress, WRITE_PATIENCE);
    let reading = async {
        while let Some(frame) = stream.next().await {
            match frame {
                Ok(Frame::Text(text)) => receive(&hub, &access, conn, &text).await,
                Ok(Frame::Binary(bytes)) => binary(&hub, &access, conn, &bytes).await,
                Ok(Frame::Ping(_) | Frame::Pong(_)) => {}
                Ok(Frame::Close(_)) => break,
                Err(error) => {
                    debug!(conn = conn.0, %error, "connection broke");
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
        // The socket is dropped without a Close frame: SDKs take one as the end, and would not come back.
        () = stop.cancelled() => {}
    }
    hub.close(conn);
    debug!(conn = conn.0, worker = origin.vm_worker, "worker disconnected");
}

/// Sends what is queued, until the peer has gone or takes nothing for as long as `patience`.
async fn write(
    mut sink: impl Sink<Frame> + Unpin,
    mut outbound: mpsc::UnboundedReceiver<Outgoing>,
    pressure: &Pressure,
    progress: &Progress,
    patience: Duration,
) {
    while let Some(first) = outbound.recv().await {
        // What is queued goes out in one flush. A full sink writes before it takes more, so feeding it can stall as well.
        let sending = async {
            let mut next = Some(first);
            while let Some(outgoing) = next {
                let bytes = outgoing.bytes;
                if let Some(text) = text_of(outgoing) {
                    sink.feed(Frame::Text(text.into())).await?;
                }
                pressure.take(bytes);
                next = outbound.try_recv().ok();
            }
            sink.flush().await
        };
        if !matches!(progress.wait(patience, sending).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// The frame of a message. A call tells its handler who calls.
fn text_of(outgoing: Outgoing) -> Option<String> {
    let Outgoing { mut message, caller, .. } = outgoing;
    if let (Message::InvokeFunction(call), Some(caller)) = (&mut message, caller)
        && let Some(data) = call.data.take()
    {
        match with_caller(data, &caller.to_string()) {
            Ok(data) => call.data = Some(data),
            Err(error) => {
                warn!(%error, function = call.function_id, "call dropped");
                return None;
            }
        }
    }
    Some(message.encode())
}

/// One frame's text. Waits while those the message goes to have no room: the peer's next frame is not read then.
async fn receive(hub: &Arc<Hub>, access: &Access, conn: engine_router::ConnId, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    let message = match decode(text) {
        Ok(message) => message,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            warn!(conn = conn.0, %error, source, "message dropped");
            return;
        }
    };
    let Some(message) = access.pass(hub, conn, message).await else { return };
    if let Some(pressure) = hub.receive(conn, message) {
        pressure.room().await;
    }
}

async fn binary(hub: &Arc<Hub>, access: &Access, conn: engine_router::ConnId, bytes: &[u8]) {
    if is_telemetry(bytes) {
        access.telemetry(bytes);
    } else if let Ok(text) = std::str::from_utf8(bytes) {
        receive(hub, access, conn, text).await;
    }
}

fn is_telemetry(bytes: &[u8]) -> bool {
    [&b"OTLP"[..], b"MTRC", b"LOGS"].iter().any(|prefix| bytes.starts_with(prefix))
}

/// `/otel`: telemetry, and nothing else.
pub(crate) async fn telemetry(mut socket: WebSocket, access: Access, stop: CancellationToken) {
    loop {
        tokio::select! {
            frame = socket.recv() => match frame {
                Some(Ok(Frame::Binary(bytes))) if is_telemetry(&bytes) => access.telemetry(&bytes),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use engine_protocol::{self as protocol, ErrorBody, ErrorMessage};
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::{Error, Message};

    use super::*;
    use crate::progress::Noting;

    /// Three of them are more than a sink takes before it writes.
    const MESSAGE_BYTES: usize = 300 * 1024;

    /// Writes three messages to a peer, whose socket is returned.
    async fn writing() -> (impl Future<Output = ()>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let progress = Progress::new();
        let socket =
            WebSocketStream::from_raw_socket(Noting::new(ours, progress.clone(), None), Role::Server, None).await;
        let sink: Pin<Box<dyn Sink<Frame, Error = Error>>> = Box::pin(socket.with(|frame: Frame| async move {
            let Frame::Text(text) = frame else { panic!("the engine writes text") };
            Ok(Message::text(text.as_str()))
        }));
        let (sender, outbound) = mpsc::unbounded_channel();
        let pressure = Pressure::default();
        for _ in 0..3 {
            let error = ErrorBody::new("x".repeat(MESSAGE_BYTES), "");
            let message = protocol::Message::Error(ErrorMessage { error });
            pressure.add(MESSAGE_BYTES);
            sender.send(Outgoing { message, caller: None, bytes: MESSAGE_BYTES }).ok().expect("a queue");
        }
        drop(sender);
        let writing = async move {
            write(sink, outbound, &pressure, &progress, WRITE_PATIENCE).await;
        };
        (writing, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_peer_with_messages_waiting_is_given_up() {
        let (writing, _theirs) = writing().await;
        timeout(2 * WRITE_PATIENCE, writing).await.expect("given up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_gets_everything() {
        let (writing, mut theirs) = writing().await;
        let begun = Instant::now();
        let reading = async {
            let (mut taken, mut piece) = (0, vec![0; 1024]);
            loop {
                sleep(WRITE_PATIENCE / 2).await;
                match theirs.read(&mut piece).await.expect("read") {
                    0 => return taken,
                    length => taken += length,
                }
            }
        };
        let ((), taken) = tokio::join!(writing, reading);
        assert!(taken > 3 * MESSAGE_BYTES, "only {taken} bytes");
        assert!(begun.elapsed() > 10 * WRITE_PATIENCE);
    }
}
