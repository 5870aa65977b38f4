//! What keeps the values.

mod bridge;
mod kv;
mod redis;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use engine_builtin::{BuiltinError, Raw, Trace};
use engine_updates::{Op, apply};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{Mutex, MutexGuard};

use crate::events::{Events, Slot};
use crate::functions::Place;
use crate::settings::AdapterConfig;

use bridge::Bridge;
use kv::Kv;
use redis::Redis;

/// Why values could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    #[error("the file failed")]
    Store(#[from] engine_store::StoreError),
    #[error("Redis failed")]
    Redis(#[from] ::redis::RedisError),
    #[error("the other engine failed")]
    Bridge(#[from] engine_client::CallError),
    #[error("what is stored is no JSON that can be used")]
    NotJson(#[from] serde_json::Error),
    #[error("what is stored is no text")]
    NotText(#[from] std::string::FromUtf8Error),
    #[error("the other engine's answer to `{function_id}` is not understood")]
    Answer { function_id: &'static str, source: serde_json::Error },
    #[error("the value was changed by others {attempts} times meanwhile")]
    Contended { attempts: u32 },
    #[error("the values are larger than a message may be")]
    TooMuch,
    #[error("the value would have {bytes} bytes, and at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the task that reads was ended")]
    Ended,
}

/// Who writes where, and what is told of it.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) place: Arc<Place>,
    pub(crate) trace: Trace,
    pub(crate) events: Arc<Events>,
}

impl Write {
    fn reserve(&self, old: usize, new: usize) -> Option<Slot> {
        self.events.reserve(&self.place, &self.trace, old + new)
    }
}

/// What a write has done.
pub(crate) struct Written {
    pub(crate) old: Option<Raw>,
    /// None: deleted.
    pub(crate) new: Option<Raw>,
    /// Of an update: operations that were skipped.
    pub(crate) errors: Option<Raw>,
    slot: Option<Slot>,
}

impl Written {
    /// Tells the handlers. Not before the write is acknowledged.
    pub(crate) fn fire(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.fire(self.old.as_deref(), self.new.as_deref());
        }
    }
}

/// The value after an update, and what was skipped.
struct Updated {
    new: Raw,
    errors: Option<Raw>,
}

/// Parses, changes and writes a value.
fn update(ops: Vec<Op>, old: Option<&RawValue>, limit: usize) -> Result<Updated, AdapterError> {
    let old: Option<Value> = old.map(|old| serde_json::from_str(old.get())).transpose()?;
    let outcome = apply(ops, old);
    let errors = if outcome.errors.is_empty() { None } else { Some(to_raw_value(&outcome.errors)?) };
    let new = to_raw_value(&outcome.value)?;
    let bytes = new.get().len();
    if bytes > limit {
        return Err(AdapterError::TooLarge { bytes, limit });
    }
    Ok(Updated { new, errors })
}

/// JSON text that comes from where others may write, too.
fn stored(bytes: Vec<u8>) -> Result<Raw, AdapterError> {
    Ok(RawValue::from_string(String::from_utf8(bytes)?)?)
}

pub(crate) enum Adapter {
    Kv(Kv),
    Redis(Redis),
    Bridge(Bridge),
}

impl Adapter {
    /// # Errors
    /// The file cannot be opened, or nobody answers there.
    pub(crate) async fn open(config: &AdapterConfig) -> Result<Self, BuiltinError> {
        Ok(match config {
            AdapterConfig::Kv(config) => Self::Kv(Kv::open(config)?),
            AdapterConfig::Redis(config) => Self::Redis(Redis::connect(config).await?),
            AdapterConfig::Bridge(config) => Self::Bridge(Bridge::connect(config)),
        })
    }

    pub(crate) async fn set(&self, write: Write, value: Raw) -> Result<Written, AdapterError> {
        match self {
            Self::Kv(kv) => kv.set(write, value).await,
            Self::Redis(redis) => redis.set(write, value).await,
            Self::Bridge(bridge) => bridge.set(write, value).await,
        }
    }

    pub(crate) async fn delete(&self, write: Write) -> Result<Written, AdapterError> {
        match self {
            Self::Kv(kv) => kv.delete(write).await,
            Self::Redis(redis) => redis.delete(write).await,
            Self::Bridge(bridge) => bridge.delete(write).await,
        }
    }

    /// `limit` is for the new value. With [`Bridge`], that of the other engine counts.
    pub(crate) async fn update(&self, write: Write, ops: Vec<Op>, limit: usize) -> Result<Written, AdapterError> {
        match self {
            Self::Kv(kv) => kv.update(write, ops, limit).await,
            Self::Redis(redis) => redis.update(write, ops, limit).await,
            Self::Bridge(bridge) => bridge.update(write, ops).await,
        }
    }

    pub(crate) async fn get(&self, place: Place) -> Result<Option<Raw>, AdapterError> {
        match self {
            Self::Kv(kv) => kv.get(&place),
            Self::Redis(redis) => redis.get(&place).await,
            Self::Bridge(bridge) => bridge.get(&place).await,
        }
    }

    /// At once, or `None` where that takes a connection: then [`Adapter::get`].
    pub(crate) fn get_now(&self, place: &Place) -> Option<Result<Option<Raw>, AdapterError>> {
        match self {
            Self::Kv(kv) => Some(kv.get(place)),
            Self::Redis(_) | Self::Bridge(_) => None,
        }
    }

    /// Values of a scope.
    pub(crate) async fn list(&self, scope: String) -> Result<Raw, AdapterError> {
        match self {
            Self::Kv(kv) => kv.list(scope).await,
            Self::Redis(redis) => redis.list(&scope).await,
            Self::Bridge(bridge) => bridge.list(scope).await,
        }
    }

    /// All scopes with values, sorted.
    pub(crate) async fn list_groups(&self) -> Result<Vec<String>, AdapterError> {
        match self {
            Self::Kv(kv) => kv.list_groups().await,
            Self::Redis(redis) => redis.list_groups().await,
            Self::Bridge(bridge) => bridge.list_groups().await,
        }
    }
}

/// Writes to one key take turns, so that their events are reserved in the order in which a server far away made them.
/// Keys share turns now and then, which costs them a moment.
struct Turns {
    turns: [Mutex<()>; 256],
    hasher: RandomState,
}

impl Turns {
    fn new() -> Self {
        Self { turns: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    async fn take(&self, place: &Place) -> MutexGuard<'_, ()> {
        let [first, ..] = self.hasher.hash_one(place).to_le_bytes();
        self.turns[usize::from(first)].lock().await
    }
}

/// A JSON array of JSON texts, no longer than a message may be.
fn array(values: &[&str]) -> Result<Raw, AdapterError> {
    let length = values.iter().map(|value| value.len() + 1).sum::<usize>() + 2;
    if length > MAX_ANSWER_BYTES {
        return Err(AdapterError::TooMuch);
    }
    let mut text = String::with_capacity(length);
    text.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(value);
    }
    text.push(']');
    Ok(RawValue::from_string(text)?)
}

/// Leaves room for what is around an answer in its message.
const MAX_ANSWER_BYTES: usize = 63 * 1024 * 1024;
