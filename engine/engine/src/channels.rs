//! Data channels: one-way, ordered, bounded pipes between two sockets.
//!
//! ```text
//! created ─► one end attached ─► both attached ─► writer ends ─► reader drained ─► gone
//!    └── 5 minutes without both ends: gone
//! ```
//! The buffer is bounded by items and by bytes: while it is full the writer's socket is not read. An item is one WebSocket
//! message, in frames of a size that every peer takes.
//!
//! A writer ends with a Close frame. One that breaks off without is told to its reader by another code than an orderly
//! end has: half a file must not look like a whole one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine_builtin::{Item, PipeReader, PipeWriter, pipe};
use engine_protocol::{ChannelRef, Direction, ErrorBody, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use engine_router::ConnId;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use uuid::Uuid;

/// How long a channel waits for both of its ends.
const UNATTACHED: Duration = Duration::from_secs(300);

/// Channels at a time, of one connection or of one VM's worker.
const MAX_CHANNELS: usize = 4096;
const MAX_GUEST_CHANNELS: usize = 32;

/// How long an end may take to answer a Close frame.
const PARTING: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Channels(Mutex<HashMap<String, Channel>>);

/// Whose channels are counted together. A guest's are those of all its connections, past ones included: what it left
/// in a channel stays when the connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Connection(ConnId),
    Vm(String),
    /// Built-in workers, which take back what nobody attached.
    Engine,
}

struct Channel {
    owner: Owner,
    key: String,
    created: Instant,
    /// Held by the ends that sockets attach to: gone when they are.
    alive: Weak<()>,
    writer: Option<Writer>,
    reader: Option<Reader>,
}

pub(crate) struct Writer {
    pipe: PipeWriter,
    _alive: Arc<()>,
}

pub(crate) struct Reader {
    pipe: PipeReader,
    _alive: Arc<()>,
}

/// The two ends, as a result of `engine::channels::create`.
#[derive(Serialize)]
pub(crate) struct ChannelPair {
    writer: ChannelRef,
    reader: ChannelRef,
}

/// One end, taken.
pub(crate) enum End {
    Writer(Writer),
    Reader(Reader),
    /// Somebody has it already.
    Taken,
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel between two sockets.
    ///
    /// # Errors
    /// The owner has as many channels as it may.
    pub(crate) fn create(&self, owner: Owner, buffer: usize) -> Result<ChannelPair, ErrorBody> {
        let limit = if matches!(owner, Owner::Vm(_)) { MAX_GUEST_CHANNELS } else { MAX_CHANNELS };
        let mut channels = self.lock();
        let channels = &mut *channels;
        if channels.values().filter(|channel| channel.owner == owner && channel.is_alive()).count() >= limit {
            let message = format!("{limit} channels are open; one has to end before the next");
            return Err(ErrorBody::new("limit_reached", message));
        }
        let (writer, reader) = pipe(buffer);
        let alive = Arc::new(());
        let writer = Writer { pipe: writer, _alive: Arc::clone(&alive) };
        let reader = Reader { pipe: reader, _alive: Arc::clone(&alive) };
        let writer_end = insert(channels, owner, &alive, Some(writer), Some(reader));
        let reader_end = ChannelRef { direction: Direction::Read, ..writer_end.clone() };
        Ok(ChannelPair { writer: writer_end, reader: reader_end })
    }

    /// A channel that we write and a socket reads.
    pub(crate) fn create_for_reader(&self, buffer: usize) -> (PipeWriter, ChannelRef) {
        let (writer, reader) = pipe(buffer);
        let alive = Arc::new(());
        let reader = Reader { pipe: reader, _alive: Arc::clone(&alive) };
        let end = insert(&mut self.lock(), Owner::Engine, &alive, None, Some(reader));
        (writer, ChannelRef { direction: Direction::Read, ..end })
    }

    /// A channel that a socket writes and we read.
    pub(crate) fn create_for_writer(&self, buffer: usize) -> (ChannelRef, PipeReader) {
        let (writer, reader) = pipe(buffer);
        let alive = Arc::new(());
        let writer = Writer { pipe: writer, _alive: Arc::clone(&alive) };
        let end = insert(&mut self.lock(), Owner::Engine, &alive, Some(writer), None);
        (end, reader)
    }

    /// Forgets a channel that nobody has attached.
    pub(crate) fn withdraw(&self, id: &str) {
        let mut channels = self.lock();
        if channels.get(id).is_some_and(|channel| channel.writer.is_some() || channel.reader.is_some()) {
            channels.remove(id);
        }
    }

    /// `None`: there is no such channel, or the key is not its key.
    pub(crate) fn attach(&self, id: &str, key: &str, direction: Direction) -> Option<End> {
        let mut channels = self.lock();
        let channel = channels.get_mut(id).filter(|channel| channel.key == key)?;
        let end = match direction {
            Direction::Write => channel.writer.take().map_or(End::Taken, End::Writer),
            Direction::Read => channel.reader.take().map_or(End::Taken, End::Reader),
        };
        // Both ends are with their sockets: nothing is left to find here, but a third must hear "taken", not "unknown".
        Some(end)
    }

    /// Forgets channels that have waited too long for an end, and those that both ends have left.
    pub(crate) fn expire(&self) {
        self.lock().retain(|_, channel| {
            let attached = channel.writer.is_none() && channel.reader.is_none();
            channel.is_alive() && (attached || channel.created.elapsed() < UNATTACHED)
        });
    }
}

/// Returns the end that is written to.
fn insert(
    channels: &mut HashMap<String, Channel>,
    owner: Owner,
    alive: &Arc<()>,
    writer: Option<Writer>,
    reader: Option<Reader>,
) -> ChannelRef {
    let end = ChannelRef {
        channel_id: Uuid::new_v4().to_string(),
        access_key: Uuid::new_v4().to_string(),
        direction: Direction::Write,
    };
    let key = end.access_key.clone();
    let channel = Channel { owner, key, created: Instant::now(), alive: Arc::downgrade(alive), writer, reader };
    channels.insert(end.channel_id.clone(), channel);
    end
}

impl Channel {
    fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Carries one end until it is through.
pub(crate) async fn carry(connection: TokioIo<Upgraded>, end: End) {
    let limits =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES)).max_frame_size(Some(MAX_FRAME_BYTES));
    let mut socket = Socket::from_raw_socket(connection, Role::Server, Some(limits)).await;
    match end {
        End::Taken => drop(socket.send(Message::Close(None)).await),
        End::Writer(writer) => take_in(socket, writer).await,
        End::Reader(reader) => give_out(socket, reader).await,
    }
}

/// Reads items as the reader takes them: while the buffer is full the socket is not read.
async fn take_in(mut socket: Socket, writer: Writer) {
    loop {
        let item = tokio::select! {
            item = socket.next() => item,
            // The reader has left: the writer must not go on for nobody.
            () = writer.pipe.reader_gone() => return,
        };
        let item = match item {
            Some(Ok(Message::Binary(bytes))) => Item::Binary(bytes),
            Some(Ok(Message::Text(text))) => Item::Text(text.as_str().to_owned()),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(said))) => {
                if is_orderly(said.as_ref()) {
                    writer.pipe.finish();
                }
                return part(socket).await;
            }
            Some(Err(_)) | None => return,
        };
        if writer.pipe.send(item).await.is_err() {
            return;
        }
    }
}

/// A writer that closes because of an error, or because its page or process goes away, says so by its code.
fn is_orderly(close: Option<&CloseFrame>) -> bool {
    close.is_none_or(|close| matches!(close.code, CloseCode::Normal | CloseCode::Status))
}

async fn give_out(mut socket: Socket, mut reader: Reader) {
    loop {
        tokio::select! {
            // First what is there, then what the peer says: a close must not overtake data.
            biased;
            item = reader.pipe.next() => match item {
                Some(item) => {
                    if send(&mut socket, item).await.is_err() {
                        return;
                    }
                }
                None => {
                    let broken = (!reader.pipe.is_whole()).then(|| CloseFrame {
                        code: CloseCode::Error,
                        reason: "the writer broke off".into(),
                    });
                    let _ = socket.send(Message::Close(broken)).await;
                    return part(socket).await;
                }
            },
            said = socket.next() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}

/// One item, in as many frames as it takes.
async fn send(socket: &mut Socket, item: Item) -> Result<(), SocketError> {
    let (mut rest, mut kind) = match item {
        Item::Binary(bytes) => (bytes, Data::Binary),
        Item::Text(text) => (Bytes::from(text), Data::Text),
    };
    loop {
        let piece = rest.split_to(rest.len().min(MAX_FRAME_BYTES));
        let frame = Frame::message(piece, OpCode::Data(kind), rest.is_empty());
        socket.send(Message::Frame(frame)).await?;
        if rest.is_empty() {
            return Ok(());
        }
        kind = Data::Continue;
    }
}

/// Lets both Close frames pass, so that the peer sees an orderly end of its socket.
async fn part(mut socket: Socket) {
    let _ = tokio::time::timeout(PARTING, async { while let Some(Ok(_)) = socket.next().await {} }).await;
}

#[cfg(test)]
mod tests;
