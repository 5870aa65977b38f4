//! Data channels: one-way, ordered, bounded pipes between two sockets.
//!
//! ```text
//! created ─► one end attached ─► both attached ─► writer ends ─► reader drained ─► gone
//!    └── 5 minutes without both ends: gone
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use engine_protocol::{ChannelRef, Direction};
use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long a channel waits for both of its ends.
const UNATTACHED: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(crate) struct Channels(Mutex<HashMap<String, Channel>>);

struct Channel {
    key: String,
    created: Instant,
    writer: Option<mpsc::Sender<Message>>,
    reader: Option<mpsc::Receiver<Message>>,
}

/// The two ends, as a result of `engine::channels::create`.
#[derive(Serialize)]
pub(crate) struct ChannelPair {
    writer: ChannelRef,
    reader: ChannelRef,
}

/// One end, taken.
pub(crate) enum End {
    Writer(mpsc::Sender<Message>),
    Reader(mpsc::Receiver<Message>),
    /// Somebody has it already.
    Taken,
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create(&self, buffer: usize) -> ChannelPair {
        let (channel_id, access_key) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let (writer, reader) = mpsc::channel(buffer);
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
        End::Writer(sender) => take_in(socket, &sender).await,
        End::Reader(receiver) => give_out(socket, receiver).await,
    }
}

/// Reads items as the reader takes them: while the buffer is full the socket is not read.
async fn take_in(mut socket: WebSocket, sender: &mpsc::Sender<Message>) {
    loop {
        let item = tokio::select! {
            item = socket.recv() => item,
            // The reader has left: the writer must not go on for nobody.
            () = sender.closed() => return,
        };
        match item {
            Some(Ok(item @ (Message::Binary(_) | Message::Text(_)))) => {
                if sender.send(item).await.is_err() {
                    return;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        }
    }
}

async fn give_out(mut socket: WebSocket, mut receiver: mpsc::Receiver<Message>) {
    loop {
        tokio::select! {
            // First what is there, then what the peer says: a close must not overtake data.
            biased;
            item = receiver.recv() => match item {
                Some(item) => if socket.send(item).await.is_err() { return },
                None => {
                    let _ = socket.send(Message::Close(None::<CloseFrame>)).await;
                    // Lets the peer's close arrive, so that it sees an orderly end.
                    let _ = tokio::time::timeout(Duration::from_secs(2), async {
                        while let Some(Ok(_)) = socket.recv().await {}
                    }).await;
                    return;
                }
            },
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}
