//! The adapter that keeps items at a Redis: every engine there sees the events of all.
//!
//! ```text
//! stream:<stream>:<group>   hash: item ─► JSON
//! iii:stream:writes         number of the last write
//! channel stream::events    the event objects, with "write", "traceparent" and "baggage" beside "event"
//! ```
//! A write, its number and its event are one script: events come in the order of the writes, whoever made them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use engine_builtin::{BuiltinError, Raw, Trace};
use futures_util::StreamExt;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSub};
use redis::{Client, ErrorKind, RedisError, RedisResult, Script};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::adapter::{AdapterError, Deleted, ItemKey, Ops, Snapshot, Written, list, updated};
use crate::event::{Emitted, Event, now_ms};
use crate::hub::Hub;

const CHANNEL: &str = "stream::events";
const WRITES: &str = "iii:stream:writes";
const HASHES: &str = "stream:";

/// For one request to the server.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a silent server is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often an update is tried while others change the same item.
const MAX_TRIES: usize = 1000;

/// `KEYS`: hash, number; `ARGV`: item, channel, the event up to its type, value, value before. The last is given where
/// the item must still be as it was read; an empty one is an item that is missing.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
        local old = redis.call('HGET', KEYS[1], ARGV[1])
        if ARGV[5] and (old or '') ~= ARGV[5] then return {0} end
        redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
        local write = string.format('%.0f', redis.call('INCR', KEYS[2]))
        local change = old and 'update' or 'create'
        redis.call('PUBLISH', ARGV[2], ARGV[3] .. change .. '","data":' .. ARGV[4] .. '},"write":' .. write .. '}')
        return {1, old}
        "#,
    )
});

/// As [`WRITE`], without values.
static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
        local old = redis.call('HGET', KEYS[1], ARGV[1])
        if not old then return false end
        redis.call('HDEL', KEYS[1], ARGV[1])
        local write = string.format('%.0f', redis.call('INCR', KEYS[2]))
        redis.call('PUBLISH', ARGV[2], ARGV[3] .. 'delete","data":' .. old .. '},"write":' .. write .. '}')
        return old
        "#,
    )
});

/// `KEYS`: hash, number; `ARGV`: perhaps an item.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
        local write = redis.call('GET', KEYS[2])
        if ARGV[1] then return {write, {redis.call('HGET', KEYS[1], ARGV[1])}} end
        return {write, redis.call('HVALS', KEYS[1])}
        "#,
    )
});

pub(crate) struct Redis {
    connection: ConnectionManager,
    listener: JoinHandle<()>,
}

impl Redis {
    /// Connects, and listens to the events.
    ///
    /// # Errors
    /// The URL is none, or nobody answers there.
    pub(crate) async fn connect(url: &str, hub: &Arc<Hub>) -> Result<Self, BuiltinError> {
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
        let connection = client.get_connection_manager_with_config(config).await.map_err(unreachable)?;
        let (told, mut listening) = watch::channel(false);
        let listener = tokio::spawn(listen(client.clone(), Arc::downgrade(hub), told));
        let adapter = Self { connection, listener };
        match timeout(PATIENCE, listening.wait_for(|listening| *listening)).await {
            Ok(Ok(_)) => Ok(adapter),
            Ok(Err(_)) | Err(_) => Err(unreachable(silent())),
        }
    }

    pub(crate) async fn set(&self, key: ItemKey, data: Raw, trace: Trace) -> Result<Written, AdapterError> {
        without_colon(&key.stream_name)?;
        let (_, old) = self.write(&key, &data, None, &trace).await?;
        Ok(Written { old_value: old.map(raw).transpose()?, new_value: data, errors: None })
    }

    /// Reads, changes, and writes if nobody else wrote meanwhile; again and again.
    pub(crate) async fn update(&self, key: ItemKey, ops: Ops, trace: Trace) -> Result<Written, AdapterError> {
        without_colon(&key.stream_name)?;
        for _ in 0..MAX_TRIES {
            let before: Option<String> =
                redis::cmd("HGET").arg(hash(&key)).arg(&key.item_id).query_async(&mut self.connection.clone()).await?;
            let (new_value, errors) = updated(ops.ops.clone(), before.as_deref())?;
            let expected = before.as_deref().unwrap_or_default();
            if let (1, old) = self.write(&key, &new_value, Some(expected), &trace).await? {
                return Ok(Written { old_value: old.map(raw).transpose()?, new_value, errors });
            }
        }
        Err(AdapterError::Contended)
    }

    async fn write(
        &self,
        key: &ItemKey,
        data: &Raw,
        expected: Option<&str>,
        trace: &Trace,
    ) -> RedisResult<(u8, Option<String>)> {
        let mut write = WRITE.key(hash(key));
        write.key(WRITES).arg(&key.item_id).arg(CHANNEL).arg(beginning(key, trace)).arg(data.get());
        if let Some(expected) = expected {
            write.arg(expected);
        }
        let mut answer: Vec<redis::Value> = write.invoke_async(&mut self.connection.clone()).await?;
        let old = if answer.len() > 1 { answer.pop() } else { None };
        let done = answer.pop().unwrap_or(redis::Value::Nil);
        let old = old.map(redis::from_redis_value::<Option<String>>).transpose()?.flatten();
        Ok((redis::from_redis_value(done)?, old))
    }

    pub(crate) async fn delete(&self, key: ItemKey, trace: Trace) -> Result<Deleted, AdapterError> {
        without_colon(&key.stream_name)?;
        let mut delete = DELETE.key(hash(&key));
        delete.key(WRITES).arg(&key.item_id).arg(CHANNEL).arg(beginning(&key, &trace));
        let old: Option<String> = delete.invoke_async(&mut self.connection.clone()).await?;
        Ok(Deleted { old_value: old.map(raw).transpose()? })
    }

    pub(crate) async fn get(&self, key: &ItemKey) -> Result<Option<Raw>, AdapterError> {
        without_colon(&key.stream_name)?;
        let value: Option<String> =
            redis::cmd("HGET").arg(hash(key)).arg(&key.item_id).query_async(&mut self.connection.clone()).await?;
        value.map(raw).transpose()
    }

    /// A list is in the server's order.
    pub(crate) async fn snapshot(
        &self,
        stream_name: &str,
        group_id: &str,
        item_id: Option<&str>,
    ) -> Result<Snapshot, AdapterError> {
        without_colon(stream_name)?;
        let mut read = READ.key(group_hash(stream_name, group_id));
        read.key(WRITES);
        if let Some(item_id) = item_id {
            read.arg(item_id);
        }
        let (write, values): (Option<u64>, Vec<Option<String>>) =
            read.invoke_async(&mut self.connection.clone()).await?;
        let mut values = values.into_iter().flatten().map(raw).collect::<Result<Vec<_>, _>>()?;
        let data = if item_id.is_some() { values.pop().unwrap_or_default() } else { list(&values)? };
        Ok(Snapshot { data, write: write.unwrap_or(0) })
    }

    pub(crate) async fn list_groups(&self, stream_name: &str) -> Result<Vec<String>, AdapterError> {
        without_colon(stream_name)?;
        let prefix = group_hash(stream_name, "");
        let hashes = self.hashes(&prefix).await?;
        Ok(hashes.iter().filter_map(|hash| hash.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    /// A stream's name ends at the first colon.
    pub(crate) async fn list_all(&self) -> Result<BTreeMap<String, Vec<String>>, AdapterError> {
        let mut streams: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for hash in self.hashes(HASHES).await? {
            if let Some((stream_name, group_id)) = hash.strip_prefix(HASHES).and_then(|name| name.split_once(':')) {
                streams.entry(stream_name.to_owned()).or_default().push(group_id.to_owned());
            }
        }
        Ok(streams)
    }

    async fn hashes(&self, prefix: &str) -> RedisResult<BTreeSet<String>> {
        let pattern = format!("{}*", literally(prefix));
        let mut found = BTreeSet::new();
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000).arg("TYPE").arg("hash");
            let (next, hashes): (u64, Vec<String>) = scan.query_async(&mut self.connection.clone()).await?;
            found.extend(hashes);
            if next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    pub(crate) async fn emit(&self, emitted: &Emitted) -> RedisResult<()> {
        let text = emitted.event.text();
        let open = text.get().strip_suffix('}').unwrap_or_default();
        let (traceparent, baggage) = (json!(emitted.trace.traceparent), json!(emitted.trace.baggage));
        let message = format!(r#"{open},"traceparent":{traceparent},"baggage":{baggage}}}"#);
        redis::cmd("PUBLISH").arg(CHANNEL).arg(message).exec_async(&mut self.connection.clone()).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// A stream's name ends at the first colon of a hash's name: with another, it would be another stream's group.
fn without_colon(stream_name: &str) -> Result<(), AdapterError> {
    if stream_name.contains(':') { Err(AdapterError::Colon) } else { Ok(()) }
}

fn group_hash(stream_name: &str, group_id: &str) -> String {
    format!("{HASHES}{stream_name}:{group_id}")
}

fn hash(key: &ItemKey) -> String {
    group_hash(&key.stream_name, &key.group_id)
}

/// A pattern that only this text fits.
fn literally(text: &str) -> String {
    let special = |character| matches!(character, '*' | '?' | '[' | ']' | '\\' | '^');
    text.chars().flat_map(|character| special(character).then_some('\\').into_iter().chain([character])).collect()
}

fn raw(json: String) -> Result<Raw, AdapterError> {
    Ok(RawValue::from_string(json)?)
}

/// The event's text up to its change's type, which the script knows.
fn beginning(key: &ItemKey, trace: &Trace) -> String {
    let ItemKey { stream_name, group_id, item_id } = key;
    let whole = json!({
        "type": "stream", "timestamp": now_ms(), "streamName": stream_name, "groupId": group_id, "id": item_id,
        "traceparent": trace.traceparent, "baggage": trace.baggage
    })
    .to_string();
    format!(r#"{},"event":{{"type":""#, whole.strip_suffix('}').unwrap_or_default())
}

fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "the server does not answer"))
}

async fn listen(client: Client, hub: Weak<Hub>, told: watch::Sender<bool>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match subscribed(&client).await {
            Ok(events) => {
                pause = FIRST_PAUSE;
                follow(events, &hub, &told).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = ended else { return };
        warn!(%error, "the Redis is away: events may be lost until it is back");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn subscribed(client: &Client) -> RedisResult<PubSub> {
    let mut events = patiently(client.get_async_pubsub()).await?;
    patiently(events.subscribe(CHANNEL)).await?;
    Ok(events)
}

/// One connection's life. `Ok` when the adapter has gone.
async fn follow(events: PubSub, hub: &Weak<Hub>, told: &watch::Sender<bool>) -> RedisResult<()> {
    let (mut sink, mut messages) = events.split();
    info!("listening to the events at the Redis");
    if told.send_replace(true)
        && let Some(hub) = hub.upgrade()
    {
        hub.missed_events();
    }
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Both arms are cancel safe: what has arrived stays where it is.
            message = messages.next() => {
                let Some(message) = message else { return Err(silent()) };
                let Some(hub) = hub.upgrade() else { return Ok(()) };
                match parse(message.get_payload_bytes()) {
                    Ok(emitted) => hub.emit(&emitted),
                    Err(error) => hub.log().line(|| warn!(%error, "what came over the channel of events is none")),
                }
            }
            _ = ping.tick() => patiently(sink.ping::<redis::Value>()).await.map(drop)?,
        }
    }
}

/// What is written beside an event.
#[derive(Deserialize)]
struct Beside {
    write: Option<u64>,
    traceparent: Option<String>,
    baggage: Option<String>,
}

fn parse(message: &[u8]) -> Result<Emitted, serde_json::Error> {
    let event: Event = serde_json::from_slice(message)?;
    let Beside { write, traceparent, baggage } = serde_json::from_slice(message)?;
    Ok(Emitted { event, write, trace: Trace { traceparent, baggage } })
}

async fn patiently<T>(request: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(PATIENCE, request).await.unwrap_or_else(|_| Err(silent()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_pattern_for_itself_only() {
        assert_eq!(literally(r"a*b?[c]\^"), r"a\*b\?\[c\]\\\^");
    }

    #[test]
    fn a_write_and_what_was_sent_are_read_back() {
        let key = ItemKey { stream_name: "s\"".into(), group_id: "g".into(), item_id: "i".into() };
        let trace = Trace { traceparent: Some("00-1".into()), baggage: None };
        let message = format!(r#"{}create","data":[1]}},"write":7}}"#, beginning(&key, &trace));
        let emitted = parse(message.as_bytes()).expect("an event");
        assert_eq!((emitted.write, emitted.trace), (Some(7), trace));
        assert_eq!((emitted.event.stream_name.as_str(), emitted.event.id.as_deref()), ("s\"", Some("i")));
        assert!(emitted.event.text().get().ends_with(r#""event":{"type":"create","data":[1]}}"#));
        assert!(parse(b"[]").is_err() && parse(b"\xff").is_err());
    }
}
