//! One worker's control connection: outside bytes stop being bytes here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message as Frame, WebSocket};
use engine_protocol::decode;
use futures_util::{SinkExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::hub::{Hub, Origin};

/// A peer that takes nothing for this long is gone, whatever its socket says.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// Serves a worker until it leaves or `stop` is cancelled.
pub(crate) async fn serve(socket: WebSocket, hub: Arc<Hub>, origin: Origin, stop: CancellationToken) {
    let seat = hub.open(origin.clone(), &stop);
    let conn = seat.conn;
    debug!(conn = conn.0, worker = origin.vm_worker, "worker connected");
    let (mut sink, mut stream) = socket.split();
    let (mut outbound, queued) = (seat.outbound, seat.queued);
    let writing = async move {
        while let Some(text) = outbound.recv().await {
            queued.fetch_sub(text.len(), Ordering::Relaxed);
            // What is queued goes out in one flush.
            let mut sent = sink.feed(Frame::Text(text.into())).await;
            while sent.is_ok()
                && let Ok(text) = outbound.try_recv()
            {
                queued.fetch_sub(text.len(), Ordering::Relaxed);
                sent = sink.feed(Frame::Text(text.into())).await;
            }
            let flushed = tokio::time::timeout(WRITE_PATIENCE, sink.flush()).await;
            if sent.is_err() || !matches!(flushed, Ok(Ok(()))) {
                return;
            }
        }
    };
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
        () = seat.stop.cancelled() => {}
    }
    hub.close(conn);
    debug!(conn = conn.0, worker = origin.vm_worker, "worker disconnected");
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
