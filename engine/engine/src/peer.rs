//! One worker's control connection: outside bytes stop being bytes here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message as Frame, WebSocket};
use engine_protocol::decode;
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::hub::{Hub, Origin, Seat};
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
    origin: Origin,
    stop: CancellationToken,
) {
    let seat = hub.open(origin.clone(), &stop);
    let conn = seat.conn;
    debug!(conn = conn.0, worker = origin.vm_worker, "worker connected");
    let (sink, mut stream) = socket.split();
    let Seat { outbound, queued, stop, .. } = seat;
    let writing = write(sink, outbound, &queued, &progress, WRITE_PATIENCE);
    let reading = async {
        while let Some(frame) = stream.next().await {
            match frame {
                Ok(Frame::Text(text)) => receive(&hub, conn, &text),
                Ok(Frame::Binary(bytes)) => binary(&hub, conn, &bytes),
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
    mut outbound: mpsc::Receiver<String>,
    queued: &AtomicUsize,
    progress: &Progress,
    patience: Duration,
) {
    while let Some(text) = outbound.recv().await {
        // What is queued goes out in one flush. A full sink writes before it takes more, so feeding it can stall as well.
        let sending = async {
            let mut next = Some(text);
            while let Some(text) = next {
                queued.fetch_sub(text.len(), Ordering::Relaxed);
                sink.feed(Frame::Text(text.into())).await?;
                next = outbound.try_recv().ok();
            }
            sink.flush().await
        };
        if !matches!(progress.wait(patience, sending).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn receive(hub: &Hub, conn: engine_router::ConnId, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    match decode(text) {
        Ok(message) => hub.receive(conn, message),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            warn!(conn = conn.0, %error, source, "message dropped");
        }
    }
}

fn binary(hub: &Hub, conn: engine_router::ConnId, bytes: &[u8]) {
    // Telemetry of older SDKs: accepted, not stored in this version.
    if [&b"OTLP"[..], b"MTRC", b"LOGS"].iter().any(|prefix| bytes.starts_with(prefix)) {
        return;
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        receive(hub, conn, text);
    }
}

/// `/otel`: telemetry is accepted and not stored in this version.
pub(crate) async fn telemetry(mut socket: WebSocket, stop: CancellationToken) {
    loop {
        tokio::select! {
            frame = socket.recv() => if !matches!(frame, Some(Ok(_))) { return },
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

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
        let (sender, outbound) = mpsc::channel(3);
        for _ in 0..3 {
            sender.try_send("x".repeat(MESSAGE_BYTES)).expect("room");
        }
        let queued = AtomicUsize::new(3 * MESSAGE_BYTES);
        let writing = async move {
            write(sink, outbound, &queued, &progress, WRITE_PATIENCE).await;
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
