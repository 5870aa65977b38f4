//! Data channels: one-way, ordered, bounded pipes between two sockets.
//!
//! ```text
//! created ─► one end attached ─► both attached ─► writer ends ─► reader drained ─► gone
//!    └── 5 minutes without both ends: gone
//! ```
//! The buffer is bounded by items and by bytes: while it is full the writer's socket is not read.
//!
//! A writer ends with a Close frame. One that breaks off without is told to its reader by another code than an orderly
//! end has: half a file must not look like a whole one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use engine_protocol::{ChannelRef, Direction, ErrorBody};
use engine_router::ConnId;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

/// How long a channel waits for both of its ends.
const UNATTACHED: Duration = Duration::from_secs(300);

/// What may lie in a channel ahead of its reader. An item that is larger has the channel for itself.
const MAX_BUFFERED_BYTES: u32 = 4 * 1024 * 1024;

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
}

struct Channel {
    owner: Owner,
    key: String,
    created: Instant,
    /// Held by both ends: gone when they are.
    alive: Weak<()>,
    writer: Option<Writer>,
    reader: Option<Reader>,
}

pub(crate) struct Writer {
    items: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
    finished: Arc<AtomicBool>,
    _alive: Arc<()>,
}

pub(crate) struct Reader {
    items: mpsc::Receiver<Item>,
    /// Whether the writer has said that there is no more; set before its end of the queue goes.
    finished: Arc<AtomicBool>,
    _alive: Arc<()>,
}

/// A message, and the room that it takes until it is with the reader.
struct Item {
    message: Message,
    _room: OwnedSemaphorePermit,
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

    /// # Errors
    /// The owner has as many channels as it may.
    pub(crate) fn create(&self, owner: Owner, buffer: usize) -> Result<ChannelPair, ErrorBody> {
        let limit = if matches!(owner, Owner::Vm(_)) { MAX_GUEST_CHANNELS } else { MAX_CHANNELS };
        let mut channels = self.lock();
        if channels.values().filter(|channel| channel.owner == owner && channel.is_alive()).count() >= limit {
            let message = format!("{limit} channels are open; one has to end before the next");
            return Err(ErrorBody::new("limit_reached", message));
        }
        let (channel_id, access_key) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let (sender, receiver) = mpsc::channel(buffer);
        let finished = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(());
        let channel = Channel {
            owner,
            key: access_key.clone(),
            created: Instant::now(),
            alive: Arc::downgrade(&alive),
            writer: Some(Writer {
                items: sender,
                room: Arc::new(Semaphore::new(MAX_BUFFERED_BYTES as usize)),
                finished: Arc::clone(&finished),
                _alive: Arc::clone(&alive),
            }),
            reader: Some(Reader { items: receiver, finished, _alive: alive }),
        };
        channels.insert(channel_id.clone(), channel);
        let end = |direction| ChannelRef { channel_id: channel_id.clone(), access_key: access_key.clone(), direction };
        Ok(ChannelPair { writer: end(Direction::Write), reader: end(Direction::Read) })
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

impl Channel {
    fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

/// Carries one end until it is through.
pub(crate) async fn carry(mut socket: WebSocket, end: End) {
    match end {
        End::Taken => drop(socket.send(Message::Close(None)).await),
        End::Writer(writer) => take_in(socket, writer).await,
        End::Reader(reader) => give_out(socket, reader).await,
    }
}

/// Reads items as the reader takes them: while the buffer is full the socket is not read.
async fn take_in(mut socket: WebSocket, writer: Writer) {
    loop {
        let item = tokio::select! {
            item = socket.recv() => item,
            // The reader has left: the writer must not go on for nobody.
            () = writer.items.closed() => return,
        };
        match item {
            Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => {
                let size = message_bytes(&message);
                let room = tokio::select! {
                    room = Arc::clone(&writer.room).acquire_many_owned(size) => room,
                    () = writer.items.closed() => return,
                };
                let Ok(room) = room else { return };
                if writer.items.send(Item { message, _room: room }).await.is_err() {
                    return;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(said))) => {
                writer.finished.store(is_orderly(said.as_ref()), Ordering::Release);
                drop(writer);
                return part(socket).await;
            }
            Some(Err(_)) | None => return,
        }
    }
}

/// What a message counts for; one that is larger than the buffer counts for all of it.
fn message_bytes(message: &Message) -> u32 {
    let length = match message {
        Message::Binary(bytes) => bytes.len(),
        Message::Text(text) => text.len(),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => 0,
    };
    u32::try_from(length).unwrap_or(MAX_BUFFERED_BYTES).min(MAX_BUFFERED_BYTES)
}

/// A writer that closes because of an error, or because its page or process goes away, says so by its code.
fn is_orderly(close: Option<&CloseFrame>) -> bool {
    close.is_none_or(|close| matches!(close.code, close_code::NORMAL | close_code::STATUS))
}

async fn give_out(mut socket: WebSocket, mut reader: Reader) {
    loop {
        tokio::select! {
            // First what is there, then what the peer says: a close must not overtake data.
            biased;
            item = reader.items.recv() => match item {
                Some(Item { message, _room }) => if socket.send(message).await.is_err() { return },
                None => {
                    let broken = (!reader.finished.load(Ordering::Acquire)).then(|| CloseFrame {
                        code: close_code::ERROR,
                        reason: "the writer broke off".into(),
                    });
                    let _ = socket.send(Message::Close(broken)).await;
                    return part(socket).await;
                }
            },
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}

/// Lets both Close frames pass, so that the peer sees an orderly end of its socket.
async fn part(mut socket: WebSocket) {
    let _ = tokio::time::timeout(PARTING, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
}

#[cfg(test)]
mod tests;
