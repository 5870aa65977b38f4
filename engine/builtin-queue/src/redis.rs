//! The `redis` adapter: topics on a Redis, without retries or dead letters; named queues are only written to.
//!
//! ```text
//! publish ─► script ─► XADD to the stream of each function that subscribes (of the topic itself, if there is none)
//! XREADGROUP ─► deliver, once ─► XACK, XDEL
//! ```
//! Streams with a consumer group, not pub/sub: what was published while nobody consumed is delivered afterwards, and what
//! was being delivered when an engine died is taken over by the next one, [`TAKE_OVER`] later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{BoxFuture, Engine, LogLimit, Raw, Trace};
use futures_util::FutureExt;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Script, cmd};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::warn;
use uuid::Uuid;

use crate::NAME;
use crate::broker::{
    Broker, DeadMessageRow, DeadTopicRow, Done, QueueError, Subscription, TopicRow, TopicStats, without_password,
};
use crate::delivery::deliver;
use crate::message::{Message, QueueId};
use crate::settings::QueueSettings;
use crate::subscribers::{Subscribers, Wishes};

/// What Redis has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// After Redis has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a consumer says that it is still at its messages.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// A message that nobody has said anything about for this long belongs to an engine that died.
const TAKE_OVER: Duration = Duration::from_secs(15);

const GROUP: &str = "iii";

/// Gives a message to each function seen within the last hour; KEYS: functions, the topic's stream.
const PUBLISH: &str = r"
local now = tonumber(redis.call('TIME')[1])
local seen = redis.call('HGETALL', KEYS[1])
local receivers = 0
for i = 1, #seen, 2 do
  if now - tonumber(seen[i + 1]) > 3600 then
    redis.call('HDEL', KEYS[1], seen[i])
  else
    redis.call('XADD', KEYS[2] .. ':' .. seen[i], '*', 'message', ARGV[1])
    receivers = receivers + 1
  end
end
if receivers == 0 then redis.call('XADD', KEYS[2], '*', 'message', ARGV[1]) end
return receivers";

/// Says that a function subscribes, and gives it some of what the topic's stream holds; KEYS: functions, the stream.
const SUBSCRIBE: &str = r"
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])
local held = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 100)
for _, entry in ipairs(held) do
  redis.call('XADD', KEYS[2] .. ':' .. ARGV[1], '*', 'message', entry[2][2])
  redis.call('XDEL', KEYS[2], entry[1])
end
return #held";

pub(crate) struct RedisBroker {
    shared: Arc<Shared>,
    subscribers: Subscribers,
}

struct Shared {
    engine: Engine,
    client: Client,
    url: String,
    connection: ConnectionManager,
    publish: Script,
    subscribe: Script,
    /// Of deliveries that fail.
    log: LogLimit,
}

impl RedisBroker {
    /// # Errors
    /// The address is none, or nobody answers there.
    pub(crate) async fn connect(engine: Engine, url: &str) -> Result<Self, QueueError> {
        let failed = |error: RedisError| failed(url, &error);
        let client = Client::open(url).map_err(failed)?;
        let config = ConnectionManagerConfig::new().set_number_of_retries(1).set_connection_timeout(Some(PATIENCE));
        let config = config.set_response_timeout(Some(PATIENCE));
        let connection = ConnectionManager::new_with_config(client.clone(), config).await.map_err(failed)?;
        let (publish, subscribe, log) = (Script::new(PUBLISH), Script::new(SUBSCRIBE), LogLimit::new(NAME));
        let shared = Shared { engine, client, url: url.to_owned(), connection, publish, subscribe, log };
        Ok(Self { shared: Arc::new(shared), subscribers: Subscribers::new() })
    }
}

fn failed(url: &str, error: &RedisError) -> QueueError {
    QueueError::Remote { broker: "Redis", url: without_password(url), reason: error.to_string() }
}

/// The two keys of a topic; the length keeps `a:b` and its function `c` apart from `a` and `b:c`.
fn topic_keys(topic: &str) -> [String; 2] {
    [format!("iii:functions:{}:{topic}", topic.len()), format!("iii:topic:{}:{topic}", topic.len())]
}

fn function_key(topic: &str, function_id: &str) -> String {
    format!("{}:{function_id}", topic_keys(topic)[1])
}

fn encoded(message: &Message) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are strings and numbers, which JSON can say")
}

impl Shared {
    async fn publish(&self, topic: &str, message: &Message) -> RedisResult<()> {
        let [functions, stream] = topic_keys(topic);
        let mut script = self.publish.key(functions);
        script.key(stream).arg(encoded(message));
        let mut connection = self.connection.clone();
        let _: i64 = script.invoke_async(&mut connection).await?;
        Ok(())
    }

    /// Consumes one function's stream until nobody wants it any more.
    async fn consume(self: Arc<Self>, queue: QueueId, mut wishes: Wishes) {
        let QueueId::Subscriber { topic, function_id } = queue else { return };
        let mut stream = Stream {
            key: function_key(&topic, &function_id),
            consumer: Uuid::new_v4().to_string(),
            calls: JoinSet::new(),
            in_flight: Vec::new(),
            shared: self,
            topic,
            function_id,
        };
        while wishes.has_changed().is_ok() {
            let consumed = stream.consume(&mut wishes).await;
            if let Err(error) = consumed {
                warn!(topic = stream.topic, %error, "Redis cannot be read");
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    _ = wishes.changed() => {}
                }
            }
        }
        stream.finish().await;
    }
}

/// One function's stream, and what of it is being delivered.
struct Stream {
    shared: Arc<Shared>,
    topic: String,
    function_id: String,
    key: String,
    consumer: String,
    /// Each ends with the entry's id.
    calls: JoinSet<String>,
    in_flight: Vec<String>,
}

impl Stream {
    /// Until nobody wants it any more.
    async fn consume(&mut self, wishes: &mut Wishes) -> RedisResult<()> {
        // Its own connection: a read that waits keeps everything behind it waiting.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(PATIENCE));
        let mut reading = self.shared.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&self.key).arg(GROUP).arg("0").arg("MKSTREAM");
        match create.query_async::<()>(&mut reading).await {
            Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
            _ => {}
        }
        let client: i64 = cmd("CLIENT").arg("ID").query_async(&mut reading).await?;
        let mut heartbeat = Instant::now();
        while wishes.has_changed().is_ok() {
            let wish = wishes.borrow_and_update().clone();
            while let Some(ended) = self.calls.try_join_next() {
                self.ended(ended);
            }
            let mut free = wish.delivery.in_flight().saturating_sub(self.in_flight.len());
            if heartbeat <= Instant::now() {
                free = free.saturating_sub(self.beat(&wish, free).await?);
                heartbeat = Instant::now() + HEARTBEAT;
            }
            let pause = heartbeat.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            if free == 0 {
                tokio::select! {
                    Some(ended) = self.calls.join_next() => self.ended(ended),
                    _ = wishes.changed() => {}
                    () = sleep(pause) => {}
                }
                continue;
            }
            let mut read = cmd("XREADGROUP");
            read.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(free);
            read.arg("BLOCK").arg(u64::try_from(pause.as_millis()).unwrap_or(1)).arg("STREAMS").arg(&self.key).arg(">");
            let read = read.query_async::<Option<StreamReadReply>>(&mut reading);
            tokio::pin!(read);
            // Ended early by Redis, never given up half way: what it has got would lie there until the take-over.
            let read = tokio::select! {
                read = &mut read => read?,
                _ = wishes.changed() => {
                    let unblock = cmd("CLIENT").arg("UNBLOCK").arg(client).to_owned();
                    let _: i64 = unblock.query_async(&mut self.shared.connection.clone()).await?;
                    read.await?
                }
            };
            let entries = read.into_iter().flat_map(|read| read.keys).flat_map(|key| key.ids);
            if wishes.has_changed().is_err() {
                return self.give_back(entries).await;
            }
            for entry in entries {
                self.deliver(entry, &wish);
            }
        }
        Ok(())
    }

    /// What has come for a function that has just gone waits for its return.
    async fn give_back(&self, entries: impl Iterator<Item = StreamId>) -> RedisResult<()> {
        for entry in entries {
            let body = entry.get::<Vec<u8>>("message").unwrap_or_default();
            let mut back = redis::pipe();
            back.atomic().cmd("XADD").arg(&self.key).arg("*").arg("message").arg(body).ignore();
            back.cmd("XACK").arg(&self.key).arg(GROUP).arg(&entry.id).ignore();
            back.cmd("XDEL").arg(&self.key).arg(&entry.id).ignore();
            back.query_async::<()>(&mut self.shared.connection.clone()).await?;
        }
        Ok(())
    }

    /// Says that the function and its deliveries are alive, and takes over at most `free` of what others have left.
    /// Returns how many.
    async fn beat(&mut self, wish: &Subscription, free: usize) -> RedisResult<usize> {
        let mut connection = self.shared.connection.clone();
        let [functions, stream] = topic_keys(&self.topic);
        let mut script = self.shared.subscribe.key(functions);
        script.key(stream).arg(&self.function_id);
        while script.invoke_async::<u64>(&mut connection).await? > 0 {}
        if !self.in_flight.is_empty() {
            let mut claim = cmd("XCLAIM");
            claim.arg(&self.key).arg(GROUP).arg(&self.consumer).arg(0).arg(&self.in_flight).arg("JUSTID");
            let _: redis::Value = claim.query_async(&mut connection).await?;
        }
        if free == 0 {
            return Ok(0);
        }
        let mut claim = cmd("XAUTOCLAIM");
        let idle = u64::try_from(TAKE_OVER.as_millis()).unwrap_or(u64::MAX);
        claim.arg(&self.key).arg(GROUP).arg(&self.consumer).arg(idle).arg("0-0").arg("COUNT").arg(free);
        let claimed: StreamAutoClaimReply = claim.query_async(&mut connection).await?;
        let taken = claimed.claimed.into_iter().filter(|entry| !self.in_flight.contains(&entry.id));
        let taken: Vec<StreamId> = taken.collect();
        let count = taken.len();
        for entry in taken {
            self.deliver(entry, wish);
        }
        Ok(count)
    }

    /// Calls the function once, and lets go of the message whatever comes of it.
    fn deliver(&mut self, entry: StreamId, wish: &Subscription) {
        let message = entry.get::<Vec<u8>>("message").and_then(|bytes| serde_json::from_slice::<Message>(&bytes).ok());
        let (shared, function_id) = (Arc::clone(&self.shared), self.function_id.clone());
        let (key, id, wish) = (self.key.clone(), entry.id.clone(), wish.clone());
        self.in_flight.push(entry.id);
        self.calls.spawn(async move {
            match message {
                Some(mut message) => {
                    message.function_id = function_id;
                    let condition = wish.condition.as_deref();
                    if let Err(error) = deliver(&shared.engine, condition, wish.delivery.timeout_ms, &message).await {
                        let function = &message.function_id;
                        shared.log.line(|| warn!(function, error, "a delivery failed; on Redis there is only one"));
                    }
                }
                None => warn!(key, id, "an entry on Redis is no message"),
            }
            let mut done = redis::pipe();
            done.cmd("XACK").arg(&key).arg(GROUP).arg(&id).ignore();
            done.cmd("XDEL").arg(&key).arg(&id).ignore();
            let done: RedisResult<()> = done.query_async(&mut shared.connection.clone()).await;
            if let Err(error) = done {
                warn!(key, id, %error, "a message that was delivered may be delivered again");
            }
            id
        });
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(id) => self.in_flight.retain(|other| *other != id),
            Err(error) => warn!(topic = self.topic, %error, "a delivery panicked"),
        }
    }

    async fn finish(mut self) {
        while self.calls.join_next().await.is_some() {}
    }
}

impl Broker for RedisBroker {
    fn start(&self) -> Done<'_, ()> {
        self.subscribers.start(|queue, wishes| Arc::clone(&self.shared).consume(queue, wishes));
        async { Ok(()) }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.subscribers.stop().boxed()
    }

    fn publish(&self, topic: String, data: Raw, trace: Trace) -> Done<'_, ()> {
        async move {
            let published = self.shared.publish(&topic, &Message::new("", data, trace)).await;
            published.map_err(|error| failed(&self.shared.url, &error))
        }
        .boxed()
    }

    fn enqueue(&self, queue: String, message: Message) -> Done<'_, String> {
        async move {
            let mut add = cmd("XADD");
            add.arg(format!("iii:queue:{queue}")).arg("*").arg("message").arg(encoded(&message));
            let added: RedisResult<String> = add.query_async(&mut self.shared.connection.clone()).await;
            added.map_err(|error| failed(&self.shared.url, &error))?;
            Ok(message.id)
        }
        .boxed()
    }

    fn subscribe(&self, topic: &str, function_id: &str, subscription: Option<Subscription>) {
        let queue = QueueId::Subscriber { topic: topic.to_owned(), function_id: function_id.to_owned() };
        let shared = Arc::clone(&self.shared);
        self.subscribers.set(queue, subscription, |queue, wishes| shared.consume(queue, wishes));
    }

    fn set_queues(&self, _queues: &BTreeMap<String, QueueSettings>) {}

    fn redrive(&self, _name: String) -> Done<'_, u64> {
        no_dead_letters()
    }

    fn redrive_message(&self, _name: String, _id: String) -> Done<'_, bool> {
        no_dead_letters()
    }

    fn discard_message(&self, _name: String, _id: String) -> Done<'_, bool> {
        no_dead_letters()
    }

    fn topics(&self) -> Done<'_, Vec<TopicRow>> {
        let row = |(name, subscriber_count)| TopicRow { name, broker_type: "redis".into(), subscriber_count };
        let rows = self.subscribers.topics().into_iter().map(row).collect();
        async { Ok(rows) }.boxed()
    }

    fn stats(&self, name: String) -> Done<'_, TopicStats> {
        async move {
            let mut connection = self.shared.connection.clone();
            let [functions, stream] = topic_keys(&name);
            let failed = |error: RedisError| failed(&self.shared.url, &error);
            let functions: Vec<String> =
                cmd("HKEYS").arg(functions).query_async(&mut connection).await.map_err(failed)?;
            let streams = functions.iter().map(|function_id| function_key(&name, function_id));
            let mut depth = 0;
            for key in streams.chain([stream, format!("iii:queue:{name}")]) {
                let length: u64 = cmd("XLEN").arg(key).query_async(&mut connection).await.map_err(failed)?;
                depth += length;
            }
            let consumer_count = self.subscribers.topics().get(&name).copied().unwrap_or_default();
            Ok(TopicStats { depth, consumer_count, ..TopicStats::default() })
        }
        .boxed()
    }

    fn dead_topics(&self) -> Done<'_, Vec<DeadTopicRow>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn dead_messages(&self, _name: String, _offset: usize, _limit: usize) -> Done<'_, Vec<DeadMessageRow>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

fn no_dead_letters<T: Send>() -> Done<'static, T> {
    async { Err(QueueError::Unsupported { adapter: "redis", what: "dead letters" }) }.boxed()
}
