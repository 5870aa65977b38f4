//! One subscriber's connection.
//!
//! ```text
//! socket ─► read ─► frames (a few) ─► obey: join, leave, sync
//! socket ◄─ write ◄─ outbox ◄─ events, sync
//! ```
//! Reading goes on while a handler is asked whether somebody may join, so pings are answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use engine_builtin::{Engine, ErrorBody, Raw, name, optional_name};
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::adapter::Place;
use crate::event::{Change, Event};
use crate::functions;
use crate::hub::Subscription;
use crate::outbox::Outbox;
use crate::triggers::{Triggers, Visitor};

/// Largest frame of a subscriber: there are only names in it.
pub(crate) const MAX_FRAME_BYTES: usize = 16 * 1024;

/// Subscriptions of one connection. One more is refused with `unauthorized`.
const MAX_SUBSCRIPTIONS: usize = 1024;

/// Frames that wait to be obeyed; then the socket is not read.
const MAX_FRAMES: usize = 16;

const PING_EVERY: Duration = Duration::from_secs(30);

/// A subscriber that sends nothing for so long, not even pongs, is gone.
const SILENCE: Duration = Duration::from_secs(90);

/// For a message to be taken: a subscriber may go on talking, and never read.
const TAKING: Duration = Duration::from_secs(60);

/// For what a subscription begins with.
const SYNCING: Duration = Duration::from_secs(10);

/// How often it is asked for, and the time between: a server that is just back may refuse once more.
const MAX_TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Who connected, and what with.
pub(crate) struct Subscriber {
    pub(crate) engine: Engine,
    pub(crate) triggers: Arc<Triggers>,
    pub(crate) place: Arc<Place>,
    pub(crate) channel_size: usize,
    /// What the auth function said of it.
    pub(crate) context: Option<Raw>,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
enum Frame {
    Join(Join),
    Leave(Leave),
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Join {
    #[serde(deserialize_with = "name")]
    subscription_id: String,
    #[serde(deserialize_with = "name")]
    stream_name: String,
    #[serde(deserialize_with = "name")]
    group_id: String,
    #[serde(default, deserialize_with = "optional_name")]
    id: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Leave {
    subscription_id: String,
}

/// Serves it until its end; handlers of `stream:leave` have run then.
pub(crate) async fn serve(socket: WebSocket, subscriber: Subscriber) {
    let outbox = Arc::new(Outbox::new(subscriber.channel_size));
    let stop = subscriber.stop.clone();
    let (sink, stream) = socket.split();
    let (frames, waiting) = mpsc::channel(MAX_FRAMES);
    let mut visit = Visit { subscriber, outbox: Arc::clone(&outbox), joined: HashMap::new() };
    tokio::select! {
        () = read(stream, frames) => {}
        () = write(sink, &outbox) => {}
        () = visit.obey(waiting) => {}
        () = stop.cancelled() => {}
    }
    visit.leave_all().await;
}

async fn read(mut stream: SplitStream<WebSocket>, frames: mpsc::Sender<Frame>) {
    loop {
        match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str(&text) {
                Ok(frame) => {
                    if frames.send(frame).await.is_err() {
                        return;
                    }
                }
                Err(error) => debug!(%error, "a subscriber's frame is ignored"),
            },
            Ok(Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
        }
    }
}

async fn write(mut sink: impl Sink<Message> + Unpin, outbox: &Outbox) {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        // Both arms are cancel safe.
        let (message, _room) = tokio::select! {
            letter = outbox.next() => (Message::Text(letter.text), letter.room),
            _ = ping.tick() => (Message::Ping(Bytes::new()), None),
        };
        match timeout(TAKING, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                debug!("a subscriber takes nothing and is dropped");
                return;
            }
        }
    }
}

/// What one connection has joined. Its subscriptions end with it.
struct Visit {
    subscriber: Subscriber,
    outbox: Arc<Outbox>,
    /// By the ids the subscriber gave.
    joined: HashMap<String, Arc<Subscription>>,
}

impl Visit {
    async fn obey(&mut self, mut frames: mpsc::Receiver<Frame>) {
        let mut missed = self.subscriber.place.hub.missed();
        loop {
            tokio::select! {
                frame = frames.recv() => match frame {
                    Some(Frame::Join(join)) => self.join(join).await,
                    Some(Frame::Leave(Leave { subscription_id })) => self.leave(&subscription_id).await,
                    None => return,
                },
                Ok(()) = missed.changed() => {
                    for subscription in self.joined.values() {
                        subscription.resync();
                        self.sync(subscription).await;
                    }
                }
            }
        }
    }

    async fn join(&mut self, join: Join) {
        let Join { subscription_id, stream_name, group_id, id } = join;
        let visitor = Visitor {
            subscription_id: &subscription_id,
            stream_name: &stream_name,
            group_id: &group_id,
            id: id.as_deref(),
            context: self.subscriber.context.as_ref(),
        };
        let full = self.joined.len() >= MAX_SUBSCRIPTIONS && !self.joined.contains_key(&subscription_id);
        if full || !self.subscriber.triggers.may_join(&visitor).await {
            let refusal = Event::new(&stream_name, &group_id, id.as_deref(), &Change::Unauthorized);
            self.outbox.room_to_keep().await;
            self.outbox.keep(refusal.text().get().into(), None);
            return;
        }
        let wanted = (stream_name, group_id, id);
        let subscription = Arc::new(Subscription::new(wanted, Arc::clone(&self.outbox), self.subscriber.channel_size));
        // Events are held back from here on; the snapshot comes after.
        self.subscriber.place.hub.add(Arc::clone(&subscription));
        if let Some(before) = self.joined.insert(subscription_id, Arc::clone(&subscription)) {
            self.subscriber.place.hub.remove(&before);
        }
        self.sync(&subscription).await;
    }

    async fn sync(&self, subscription: &Subscription) {
        let Subscription { stream_name, group_id, item_id, .. } = subscription;
        let item_id = item_id.as_deref();
        let Subscriber { engine, place, .. } = &self.subscriber;
        let mut tries = 1;
        let (snapshot, room) = loop {
            let asked = async {
                let room = room(&place.hub.syncing).await?;
                Ok((functions::snapshot(engine, place, stream_name, group_id, item_id).await?, room))
            };
            let error = match timeout(SYNCING, asked).await {
                Ok(Ok(read)) => break read,
                Ok(Err(error)) => error,
                Err(_) => ErrorBody::new("TIMEOUT", "no answer in time"),
            };
            if tries == MAX_TRIES {
                let line = || warn!(stream = stream_name, %error, "a subscription goes on without what is there");
                place.hub.log().line(line);
                subscription.unsynced();
                return;
            }
            tries += 1;
            sleep(PAUSE).await;
        };
        let sync = Event::new(stream_name, group_id, item_id, &Change::Sync { data: &snapshot.data });
        let sync = Utf8Bytes::from(sync.text().get());
        let room = shrunk(room, sync.len());
        self.outbox.room_to_keep().await;
        subscription.synced(sync, snapshot.write, room);
    }

    async fn leave(&mut self, subscription_id: &str) {
        let Some(subscription) = self.joined.remove(subscription_id) else { return };
        self.subscriber.place.hub.remove(&subscription);
        let visitor = Visitor {
            subscription_id,
            stream_name: &subscription.stream_name,
            group_id: &subscription.group_id,
            id: subscription.item_id.as_deref(),
            context: self.subscriber.context.as_ref(),
        };
        self.subscriber.triggers.left(&visitor).await;
    }

    async fn leave_all(mut self) {
        self.forget();
        for subscription_id in self.joined.keys().cloned().collect::<Vec<_>>() {
            self.leave(&subscription_id).await;
        }
    }

    fn forget(&self) {
        for subscription in self.joined.values() {
            self.subscriber.place.hub.remove(subscription);
        }
    }
}

/// For the largest there may be: its size is known when it is read.
async fn room(syncing: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ErrorBody> {
    let bytes = u32::try_from(functions::MAX_SYNC_BYTES).unwrap_or(u32::MAX);
    let room = Arc::clone(syncing).acquire_many_owned(bytes).await;
    room.map_err(|error| ErrorBody::new("STREAM_GET_GROUP_ERROR", error.to_string()))
}

/// Gives back what is not used.
fn shrunk(mut room: OwnedSemaphorePermit, bytes: usize) -> OwnedSemaphorePermit {
    room.split(bytes.min(room.num_permits())).unwrap_or(room)
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_takes_nothing_is_dropped_however_much_it_says() {
        let never = futures_util::sink::unfold((), |(), _: Message| std::future::pending::<Result<(), ()>>());
        let outbox = Outbox::new(1);
        outbox.push("an event".into(), None);
        write(Box::pin(never), &outbox).await;
    }

    #[test]
    fn frames_are_read_as_published_and_others_are_none() {
        let parse = |text: &str| serde_json::from_str::<Frame>(text);
        let join = r#"{"type":"join","data":{"subscriptionId":"s1","streamName":"chat","groupId":"room-4","id":null}}"#;
        let joined =
            Join { subscription_id: "s1".into(), stream_name: "chat".into(), group_id: "room-4".into(), id: None };
        assert_eq!(parse(join).expect("a frame"), Frame::Join(joined));
        let leave = r#"{"data":{"subscriptionId":"s1","streamName":"chat","groupId":"room-4"},"type":"leave"}"#;
        assert_eq!(parse(leave).expect("a frame"), Frame::Leave(Leave { subscription_id: "s1".into() }));
        for bad in ["", "{}", "[]", r#"{"type":"join"}"#, r#"{"type":"join","data":{"subscriptionId":1}}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
