//! The adapter that shares messages with every engine at one Redis: a topic is a channel.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine_builtin::{BuiltinError, Raw, Trace};
use futures_util::StreamExt;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSubSink};
use redis::{Client, ErrorKind, Msg, RedisError, RedisResult};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::pubsub::Shared;

/// For one request to the server.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a silent server is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A connection that publishes, and a task that listens.
pub(crate) struct Redis {
    publishing: ConnectionManager,
    shared: Weak<Shared>,
    /// The version of the topics that the server has been told of; `None` while it is away.
    subscribed: watch::Receiver<Option<u64>>,
    active: Arc<AtomicBool>,
    listener: JoinHandle<()>,
}

impl Redis {
    /// Connects, and subscribes to every topic. Delivers nothing before it is [activated](Self::activate).
    ///
    /// # Errors
    /// The URL is none, or nobody answers there.
    pub(crate) async fn connect(url: &str, shared: &Arc<Shared>) -> Result<Self, BuiltinError> {
        // Neither message holds the URL: it may hold a password.
        let client = Client::open(url)
            .map_err(|error| BuiltinError::Settings(format!("adapter.config.redis_url: no Redis URL: {error}")))?;
        let unreachable = |error: RedisError| {
            BuiltinError::failed(format!("could not reach the Redis at {}", client.get_connection_info().addr()), error)
        };
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let publishing = client.get_connection_manager_with_config(config).await.map_err(unreachable)?;
        let (told, mut subscribed) = watch::channel(None);
        let active = Arc::new(AtomicBool::new(false));
        let listening = Listening { shared: Arc::downgrade(shared), active: Arc::clone(&active), told };
        let listener = tokio::spawn(listen(client.clone(), listening, shared.changes()));
        let adapter =
            Self { publishing, shared: Arc::downgrade(shared), subscribed: subscribed.clone(), active, listener };
        match timeout(PATIENCE, subscribed.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(adapter),
            Ok(Err(_)) | Err(_) => Err(unreachable(silent())),
        }
    }

    pub(crate) fn activate(&self) {
        self.active.store(true, Ordering::Release);
    }

    pub(crate) fn deactivate(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// Tells the server, after it was told of every subscription that was there before.
    ///
    /// # Errors
    /// The server is away; the message is gone.
    pub(crate) async fn publish(&self, topic: &str, data: &Raw) -> RedisResult<()> {
        let Some(version) = self.shared.upgrade().map(|shared| shared.version()) else { return Ok(()) };
        let mut subscribed = self.subscribed.clone();
        let caught_up = subscribed.wait_for(|told| told.is_some_and(|told| told >= version));
        if !matches!(timeout(PATIENCE, caught_up).await, Ok(Ok(_))) {
            return Err(silent());
        }
        let mut connection = self.publishing.clone();
        redis::cmd("PUBLISH").arg(topic).arg(data.get()).exec_async(&mut connection).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "the server does not answer"))
}

struct Listening {
    shared: Weak<Shared>,
    active: Arc<AtomicBool>,
    told: watch::Sender<Option<u64>>,
}

async fn listen(client: Client, listening: Listening, mut changes: watch::Receiver<()>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(error) = connected(&client, &listening, &mut changes).await else { return };
        let was_connected = listening.told.send_replace(None).is_some();
        if was_connected {
            pause = FIRST_PAUSE;
        }
        warn!(%error, "the Redis is away: messages may be lost until it is back");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection's life. `Ok` when the worker has gone.
async fn connected(client: &Client, listening: &Listening, changes: &mut watch::Receiver<()>) -> RedisResult<()> {
    let (mut sink, mut messages) = patiently(client.get_async_pubsub()).await?.split();
    let mut subscribed = BTreeSet::new();
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    changes.mark_changed();
    loop {
        tokio::select! {
            // All arms are cancel safe: what has arrived stays where it is.
            changed = changes.changed() => {
                let (Ok(()), Some(shared)) = (changed, listening.shared.upgrade()) else { return Ok(()) };
                let (version, wanted) = shared.topics();
                subscribe(&mut sink, &subscribed, &wanted).await?;
                subscribed = wanted;
                if listening.told.send_replace(Some(version)).is_none() {
                    info!(topics = subscribed.len(), "subscribed at the Redis");
                }
            }
            message = messages.next() => {
                let Some(message) = message else { return Err(silent()) };
                let Some(shared) = listening.shared.upgrade() else { return Ok(()) };
                if listening.active.load(Ordering::Acquire) {
                    deliver(&shared, &message);
                }
            }
            _ = ping.tick() => patiently(sink.ping::<redis::Value>()).await.map(drop)?,
        }
    }
}

async fn subscribe(sink: &mut PubSubSink, now: &BTreeSet<String>, wanted: &BTreeSet<String>) -> RedisResult<()> {
    let (added, gone) = (wanted.difference(now).collect::<Vec<_>>(), now.difference(wanted).collect::<Vec<_>>());
    if !added.is_empty() {
        patiently(sink.subscribe(added)).await?;
    }
    if !gone.is_empty() {
        patiently(sink.unsubscribe(gone)).await?;
    }
    Ok(())
}

fn deliver(shared: &Arc<Shared>, message: &Msg) {
    let Ok(data) = serde_json::from_slice::<Raw>(message.get_payload_bytes()) else {
        warn!(channel = message.get_channel_name(), "a message at the Redis is no JSON");
        return;
    };
    // What is too much is dropped, and told by the deliveries.
    let _ = shared.deliver(message.get_channel_name(), data, &Trace::default());
}

async fn patiently<T>(request: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(PATIENCE, request).await.unwrap_or_else(|_| Err(silent()))
}
