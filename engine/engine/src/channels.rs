//! Data channels: one-way, ordered, bounded pipes between two sockets.
//!
//! ```text
//! created ─► one end attached ─► both attached ─► writer ends ─► reader drained ─► gone
//!    └── 5 minutes without both ends: gone
//! ```
//! A writer ends with a Close frame. One that breaks off without is told to its reader by another code than an orderly
//! end has: half a file must not look like a whole one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use engine_protocol::{ChannelRef, Direction};
use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long a channel waits for both of its ends.
const UNATTACHED: Duration = Duration::from_secs(300);

/// How long an end may take to answer a Close frame.
const PARTING: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Channels(Mutex<HashMap<String, Channel>>);

struct Channel {
    key: String,
    created: Instant,
    writer: Option<Writer>,
    reader: Option<Reader>,
}

pub(crate) struct Writer {
    items: mpsc::Sender<Message>,
    finished: Arc<AtomicBool>,
}

pub(crate) struct Reader {
    items: mpsc::Receiver<Message>,
    /// Whether the writer has said that there is no more; set before its end of the queue goes.
    finished: Arc<AtomicBool>,
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

    pub(crate) fn create(&self, buffer: usize) -> ChannelPair {
        let (channel_id, access_key) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let (sender, receiver) = mpsc::channel(buffer);
        let finished = Arc::new(AtomicBool::new(false));
        let writer = Writer { items: sender, finished: Arc::clone(&finished) };
        let reader = Reader { items: receiver, finished };
        let channel =
            Channel { key: access_key.clone(), created: Instant::now(), writer: Some(writer), reader: Some(reader) };
        self.lock().insert(channel_id.clone(), channel);
        let end = |direction| ChannelRef { channel_id: channel_id.clone(), access_key: access_key.clone(), direction };
        ChannelPair { writer: end(Direction::Write), reader: end(Direction::Read) }
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

    /// Forgets channels that wait for an end no longer, or that both ends have left long ago.
    pub(crate) fn expire(&self) {
        self.lock().retain(|_, channel| channel.created.elapsed() < UNATTACHED);
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
            Some(Ok(item @ (Message::Binary(_) | Message::Text(_)))) => {
                if writer.items.send(item).await.is_err() {
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
                Some(item) => if socket.send(item).await.is_err() { return },
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
