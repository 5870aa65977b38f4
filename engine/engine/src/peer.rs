//! One worker's control connection: outside bytes stop being bytes here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::ws::WebSocket;
use engine_protocol::{Outbound, decode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::frames::{self, Event, FrameError, Incoming};
use crate::hub::{Hub, Origin, Seat};
use crate::progress::Progress;

/// A peer that takes nothing for this long is gone, whatever its socket says.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// Messages up to this size are written together, larger ones from where they are.
const SMALL_BYTES: usize = 16 * 1024;

/// What is written together, about.
const BATCH_BYTES: usize = 64 * 1024;

/// Pongs that may wait; of more pings than that some go unanswered, which the protocol allows.
const PONGS: usize = 4;

/// Serves a worker until it leaves or `stop` is cancelled.
///
/// `progress` is the socket's.
pub(crate) async fn serve(
    socket: impl AsyncRead + AsyncWrite,
    progress: Progress,
    hub: Arc<Hub>,
    origin: Origin,
    stop: CancellationToken,
) {
    let seat = hub.open(origin.clone(), &stop);
    let conn = seat.conn;
    debug!(conn = conn.0, worker = origin.vm_worker, "worker connected");
    let (source, sink) = tokio::io::split(socket);
    let Seat { outbound, queued, stop, .. } = seat;
    let (pings, pongs) = mpsc::channel(PONGS);
    let writing = write(sink, Queue { outbound, queued: &queued, pongs }, &progress, WRITE_PATIENCE);
    let reading = async {
        if let Err(error) = read(source, &hub, conn, &pings).await {
            debug!(conn = conn.0, %error, "connection broke");
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

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// Hands on what arrives, until the peer says that it leaves or has left.
async fn read(
    mut source: impl AsyncRead + Unpin,
    hub: &Hub,
    conn: engine_router::ConnId,
    pings: &mpsc::Sender<Vec<u8>>,
) -> Result<(), ReadError> {
    let mut incoming = Incoming::default();
    while incoming.fill(&mut source).await? > 0 {
        while let Some(event) = incoming.next()? {
            match event {
                Event::Text(text) => receive(hub, conn, text),
                Event::Binary(bytes) => binary(hub, conn, bytes),
                Event::Ping(payload) => drop(pings.try_send(payload.to_vec())),
                Event::Close => return Ok(()),
            }
        }
    }
    Ok(())
}

/// What waits for a peer.
struct Queue<'a, M> {
    outbound: mpsc::Receiver<M>,
    /// Bytes in `outbound`.
    queued: &'a AtomicUsize,
    pongs: mpsc::Receiver<Vec<u8>>,
}

enum Item {
    Message(Outbound),
    Pong(Vec<u8>),
}

impl<M: Into<Outbound>> Queue<'_, M> {
    /// Pongs first: peers take a late one as a lost connection.
    async fn next(&mut self) -> Option<Item> {
        tokio::select! {
            biased;
            Some(payload) = self.pongs.recv() => Some(Item::Pong(payload)),
            message = self.outbound.recv() => message.map(|message| self.taken(message)),
        }
    }

    fn next_at_hand(&mut self) -> Option<Item> {
        if let Ok(payload) = self.pongs.try_recv() {
            return Some(Item::Pong(payload));
        }
        self.outbound.try_recv().ok().map(|message| self.taken(message))
    }

    fn taken(&self, message: M) -> Item {
        let message = message.into();
        self.queued.fetch_sub(message.len(), Ordering::Relaxed);
        Item::Message(message)
    }
}

/// Sends what is queued, until the peer has gone or takes nothing for as long as `patience`.
async fn write(
    mut sink: impl AsyncWrite + Unpin,
    mut queue: Queue<'_, impl Into<Outbound>>,
    progress: &Progress,
    patience: Duration,
) {
    let mut batch = Vec::new();
    while let Some(first) = queue.next().await {
        let sending = async {
            let mut next = Some(first);
            while let Some(item) = next {
                send(&mut sink, &mut batch, item).await?;
                if batch.len() >= BATCH_BYTES {
                    write_all(&mut sink, &mut [IoSlice::new(&batch)]).await?;
                    batch.clear();
                }
                next = queue.next_at_hand();
            }
            write_all(&mut sink, &mut [IoSlice::new(&batch)]).await?;
            batch.clear();
            sink.flush().await
        };
        if !matches!(progress.wait(patience, sending).await, Ok(Ok(()))) {
            return;
        }
        batch.shrink_to(BATCH_BYTES);
    }
}

/// Puts `item` into the batch, or behind it onto the wire.
async fn send(sink: &mut (impl AsyncWrite + Unpin), batch: &mut Vec<u8>, item: Item) -> io::Result<()> {
    let message = match item {
        Item::Message(message) => message,
        Item::Pong(payload) => {
            frames::pong(batch, &payload);
            return Ok(());
        }
    };
    frames::begin_text(batch, message.len());
    let [head, payload, tail] = message.pieces();
    if message.len() <= SMALL_BYTES {
        for piece in [head, payload, tail] {
            batch.extend_from_slice(piece);
        }
        return Ok(());
    }
    let mut slices = [&*batch, head, payload, tail].map(IoSlice::new);
    write_all(sink, &mut slices).await?;
    batch.clear();
    Ok(())
}

async fn write_all(sink: &mut (impl AsyncWrite + Unpin), mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Drops what is empty.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = std::future::poll_fn(|task| Pin::new(&mut *sink).poll_write_vectored(task, slices)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

fn receive(hub: &Hub, conn: engine_router::ConnId, text: &str) {
    if text.trim_start().is_empty() {
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
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::progress::Noting;

    const MESSAGE_BYTES: usize = 300 * 1024;

    /// Writes three messages to a peer, whose socket is returned.
    fn writing() -> (impl Future<Output = ()>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let progress = Progress::new();
        let sink = Noting::new(ours, progress.clone(), None);
        let (sender, outbound) = mpsc::channel(3);
        for _ in 0..3 {
            sender.try_send("x".repeat(MESSAGE_BYTES)).expect("room");
        }
        let writing = async move {
            let queued = AtomicUsize::new(3 * MESSAGE_BYTES);
            let (_pings, pongs) = mpsc::channel(PONGS);
            write(sink, Queue { outbound, queued: &queued, pongs }, &progress, WRITE_PATIENCE).await;
        };
        (writing, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_peer_with_messages_waiting_is_given_up() {
        let (writing, _theirs) = writing();
        timeout(2 * WRITE_PATIENCE, writing).await.expect("given up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_gets_everything() {
        let (writing, mut theirs) = writing();
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

    /// Small, large, and pings in between: all of it arrives whole, and in order.
    #[tokio::test]
    async fn messages_of_all_sizes_arrive_in_order() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let sizes = [0, 1, 125, 126, 65_535, 65_536, SMALL_BYTES, SMALL_BYTES + 1, 5, BATCH_BYTES, 200_000, 7];
        let (sender, outbound) = mpsc::channel(sizes.len());
        let mut wanted = Vec::new();
        let (pings, pongs) = mpsc::channel(PONGS);
        pings.try_send(b"there?".to_vec()).expect("room");
        frames::pong(&mut wanted, b"there?");
        for size in sizes {
            let text = "y".repeat(size);
            frames::begin_text(&mut wanted, size);
            wanted.extend_from_slice(text.as_bytes());
            sender.try_send(text).expect("room");
        }
        drop((sender, pings));
        let queued = AtomicUsize::new(sizes.iter().sum());
        let progress = Progress::new();
        let writing = write(ours, Queue { outbound, queued: &queued, pongs }, &progress, WRITE_PATIENCE);
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(theirs.read_to_end(&mut got), writing);
        read.expect("read");
        assert!(got == wanted);
        assert_eq!(queued.into_inner(), 0);
    }
}
