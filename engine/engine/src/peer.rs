//! One worker's control connection: outside bytes stop being bytes here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message as Frame, WebSocket};
use bytes::Bytes;
use engine_protocol::{MAX_FRAME_BYTES, Message, Outbound, decode, decode_frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::access::Access;
use crate::frames::{self, Event, FrameError, Incoming};
use crate::hub::{Hub, Origin, Outgoing, Seat, unix_us};
use crate::pressure::Pressure;
use crate::progress::Progress;

/// A peer that takes nothing for this long is gone, whatever its socket says.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection that ends may take to say so.
const PARTING: Duration = Duration::from_secs(2);

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
    access: Access,
    origin: Origin,
    stop: CancellationToken,
) {
    let seat = hub.open(origin.clone(), &stop);
    let conn = seat.conn;
    debug!(conn = conn.0, worker = origin.vm_worker, "worker connected");
    let (source, sink) = tokio::io::split(socket);
    let Seat { outbound, pressure, stop, .. } = seat;
    let (pings, pongs) = mpsc::channel(PONGS);
    let writing = write(sink, Queue { outbound, pressure: &pressure, pongs }, &progress, WRITE_PATIENCE);
    let reading = async {
        match read(source, &hub, &access, conn, &pings).await {
            Ok(()) => {
                // A peer that says it leaves waits to hear the same; the writer ends with that.
                let parting = async {
                    let _ = pings.send(Control::Close).await;
                    std::future::pending::<()>().await;
                };
                let _ = tokio::time::timeout(PARTING, parting).await;
            }
            Err(error) => debug!(conn = conn.0, %error, "connection broke"),
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
    hub: &Arc<Hub>,
    access: &Access,
    conn: engine_router::ConnId,
    pings: &mpsc::Sender<Control>,
) -> Result<(), ReadError> {
    let mut incoming = Incoming::default();
    while incoming.fill(&mut source).await? > 0 {
        // Of all that has arrived together: a look at the clock for each message would take a thirtieth of its time.
        let mut at_us = unix_us();
        while let Some(event) = incoming.next()? {
            match event {
                Event::Text { text, frame } => receive(hub, access, conn, text, frame, &mut at_us).await,
                Event::Binary(bytes) => binary(hub, access, conn, bytes, &mut at_us).await,
                Event::Ping(payload) => drop(pings.try_send(Control::Pong(payload.to_vec()))),
                Event::Close => return Ok(()),
            }
        }
    }
    Ok(())
}

/// What waits for a peer.
struct Queue<'a> {
    outbound: mpsc::UnboundedReceiver<Outgoing>,
    /// Of `outbound`.
    pressure: &'a Pressure,
    pongs: mpsc::Receiver<Control>,
}

enum Item {
    Message(Outgoing),
    Control(Control),
}

/// An answer to one of the peer's control frames.
enum Control {
    Pong(Vec<u8>),
    /// The last frame there is.
    Close,
}

impl Queue<'_> {
    /// Pongs first: peers take a late one as a lost connection.
    async fn next(&mut self) -> Option<Item> {
        tokio::select! {
            biased;
            Some(control) = self.pongs.recv() => Some(Item::Control(control)),
            message = self.outbound.recv() => message.map(|message| self.taken(message)),
        }
    }

    /// Pongs are looked for where a batch begins: no later than that a message could leave.
    fn next_at_hand(&mut self, begins_batch: bool) -> Option<Item> {
        if begins_batch && let Ok(control) = self.pongs.try_recv() {
            return Some(Item::Control(control));
        }
        self.outbound.try_recv().ok().map(|message| self.taken(message))
    }

    fn taken(&self, outgoing: Outgoing) -> Item {
        self.pressure.take(outgoing.bytes);
        Item::Message(outgoing)
    }
}

/// Sends what is queued, until the peer has gone or takes nothing for as long as `patience`.
async fn write(mut sink: impl AsyncWrite + Unpin, mut queue: Queue<'_>, progress: &Progress, patience: Duration) {
    let mut batch = Batch::default();
    while let Some(first) = queue.next().await {
        let sending = async {
            let (mut next, mut last) = (Some(first), false);
            while let Some(item) = next {
                last = matches!(item, Item::Control(Control::Close));
                send(&mut sink, &mut batch, item).await?;
                if batch.bytes.len() >= BATCH_BYTES {
                    write_all(&mut sink, &mut [IoSlice::new(&batch.bytes)]).await?;
                    batch.bytes.clear();
                }
                next = if last { None } else { queue.next_at_hand(batch.bytes.is_empty()) };
            }
            write_all(&mut sink, &mut [IoSlice::new(&batch.bytes)]).await?;
            batch.bytes.clear();
            sink.flush().await?;
            Ok::<_, io::Error>(last)
        };
        if !matches!(progress.wait(patience, sending).await, Ok(Ok(false))) {
            return;
        }
        batch.bytes.shrink_to(BATCH_BYTES);
        batch.buffer.shrink_to(SMALL_BYTES);
    }
}

/// What leaves together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where a message is written before it goes into the batch, since its length goes first.
    buffer: String,
}

/// Puts `item` into the batch, or behind it onto the wire.
async fn send(sink: &mut (impl AsyncWrite + Unpin), batch: &mut Batch, item: Item) -> io::Result<()> {
    let Batch { bytes: batch, buffer } = batch;
    let message = match item {
        Item::Message(outgoing) => outgoing.message.into_outbound(outgoing.caller, std::mem::take(buffer)),
        Item::Control(Control::Pong(payload)) => {
            frames::pong(batch, &payload);
            return Ok(());
        }
        Item::Control(Control::Close) => {
            frames::close(batch);
            return Ok(());
        }
    };
    if message.len() > MAX_FRAME_BYTES {
        return send_in_pieces(sink, batch, &message).await;
    }
    frames::begin_text(batch, message.len());
    let [head, payload, tail] = message.pieces();
    if message.len() <= SMALL_BYTES {
        for piece in [head, payload, tail] {
            batch.extend_from_slice(piece);
        }
        *buffer = message.into_buffer();
        return Ok(());
    }
    let mut slices = [&*batch, head, payload, tail].map(IoSlice::new);
    write_all(sink, &mut slices).await?;
    batch.clear();
    Ok(())
}

/// In frames of a size that every peer takes.
async fn send_in_pieces(
    sink: &mut (impl AsyncWrite + Unpin),
    batch: &mut Vec<u8>,
    message: &Outbound,
) -> io::Result<()> {
    let pieces: Vec<&[u8]> = message.pieces().into_iter().flat_map(|piece| piece.chunks(MAX_FRAME_BYTES)).collect();
    for (at, piece) in pieces.iter().enumerate() {
        frames::begin_piece(batch, at == 0, at + 1 == pieces.len(), piece.len());
        write_all(sink, &mut [IoSlice::new(batch), IoSlice::new(piece)]).await?;
        batch.clear();
    }
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

/// One frame's text, which arrived at `at_us`. Waits while those the message goes to have no room: the peer's next frame is
/// not read then, and arrives when there is.
async fn receive(
    hub: &Arc<Hub>,
    access: &Access,
    conn: engine_router::ConnId,
    text: &str,
    frame: Option<&Bytes>,
    at_us: &mut u64,
) {
    if text.trim_start().is_empty() {
        return;
    }
    let message = match frame.map_or_else(|| decode(text), |frame| decode_frame(text, frame)) {
        Ok(message) => message,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            hub.log(conn, || warn!(conn = conn.0, %error, source, "message dropped"));
            return;
        }
    };
    let Some(message) = access.pass(hub, conn, message).await else { return };
    // Others may have been asked before they pass.
    if !matches!(message, Message::InvokeFunction(_) | Message::InvocationResult(_)) {
        *at_us = unix_us();
    }
    if let Some(pressure) = hub.receive(conn, message, *at_us) {
        pressure.room().await;
        *at_us = unix_us();
    }
}

async fn binary(hub: &Arc<Hub>, access: &Access, conn: engine_router::ConnId, bytes: &[u8], at_us: &mut u64) {
    if is_telemetry(bytes) {
        access.telemetry(bytes);
    } else if let Ok(text) = std::str::from_utf8(bytes) {
        receive(hub, access, conn, text, None, at_us).await;
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

/// Tells a peer why it does not come in, and ends its connection.
pub(crate) async fn refuse(mut socket: impl AsyncRead + AsyncWrite + Unpin, why: Message) {
    let why = why.into_outbound(None, String::new());
    let mut bytes = Vec::new();
    frames::begin_text(&mut bytes, why.len());
    why.pieces().iter().for_each(|piece| bytes.extend_from_slice(piece));
    frames::close(&mut bytes);
    let telling = async {
        socket.write_all(&bytes).await?;
        socket.shutdown().await?;
        // Bytes that nobody reads would have the connection reset, and our words with it.
        tokio::io::copy(&mut socket, &mut tokio::io::sink()).await
    };
    // Whoever does not listen need not know.
    let _ = tokio::time::timeout(PARTING, telling).await;
}

#[cfg(test)]
mod tests {
    use engine_protocol::{ErrorBody, ErrorMessage};
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::progress::Noting;

    const MESSAGE_BYTES: usize = 300 * 1024;

    /// A message whose frame has about `bytes` bytes.
    fn text(bytes: usize, pressure: &Pressure) -> Outgoing {
        let error = ErrorBody::new("x".repeat(bytes), "");
        pressure.add(bytes);
        Outgoing { message: Message::Error(ErrorMessage { error }), caller: None, bytes }
    }

    /// Writes three messages to a peer, whose socket is returned.
    fn writing() -> (impl Future<Output = ()>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let progress = Progress::new();
        let sink = Noting::new(ours, progress.clone(), None);
        let (sender, outbound) = mpsc::unbounded_channel();
        let pressure = Pressure::default();
        for _ in 0..3 {
            assert!(sender.send(text(MESSAGE_BYTES, &pressure)).is_ok());
        }
        let writing = async move {
            let (_pings, pongs) = mpsc::channel(PONGS);
            write(sink, Queue { outbound, pressure: &pressure, pongs }, &progress, WRITE_PATIENCE).await;
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
        let (sender, outbound) = mpsc::unbounded_channel();
        let pressure = Pressure::default();
        let mut wanted = Vec::new();
        let (pings, pongs) = mpsc::channel(PONGS);
        assert!(pings.try_send(Control::Pong(b"there?".to_vec())).is_ok());
        frames::pong(&mut wanted, b"there?");
        for size in sizes {
            let outgoing = text(size, &pressure);
            let encoded = outgoing.message.encode();
            frames::begin_text(&mut wanted, encoded.len());
            wanted.extend_from_slice(encoded.as_bytes());
            assert!(sender.send(outgoing).is_ok());
        }
        drop((sender, pings));
        let progress = Progress::new();
        let writing = write(ours, Queue { outbound, pressure: &pressure, pongs }, &progress, WRITE_PATIENCE);
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(theirs.read_to_end(&mut got), writing);
        read.expect("read");
        assert!(got == wanted);
    }
}
