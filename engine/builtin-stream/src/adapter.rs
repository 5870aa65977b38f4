//! Where items are kept: what every adapter does.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_builtin::{BuiltinError, ErrorBody, Raw, Trace, name};
use engine_client::CallError;
use engine_store::StoreError;
use engine_updates::Op;
use serde::{Deserialize, Serialize};

use crate::bridge::Bridge;
use crate::event::Emitted;
use crate::hub::Hub;
use crate::kv::Kv;
use crate::redis::Redis;
use crate::settings::AdapterConfig;
use crate::triggers::Triggers;

/// Largest item, as JSON: with the one before it and what is around them, it still fits into a message.
const MAX_ITEM_BYTES: usize = 15 * 1024 * 1024;

/// Largest list. Leaves room for what is around an answer in its message.
pub(crate) const MAX_LIST_BYTES: usize = 63 * 1024 * 1024;

/// Where an item is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ItemKey {
    #[serde(deserialize_with = "name")]
    pub(crate) stream_name: String,
    #[serde(deserialize_with = "name")]
    pub(crate) group_id: String,
    #[serde(deserialize_with = "name")]
    pub(crate) item_id: String,
}

/// What `stream::set` and `stream::update` answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Written {
    #[serde(default)]
    pub(crate) old_value: Option<Raw>,
    pub(crate) new_value: Raw,
    /// Operations that were skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) errors: Option<Raw>,
}

/// What `stream::delete` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Deleted {
    #[serde(default)]
    pub(crate) old_value: Option<Raw>,
}

/// An item, or all of a group, and the number of the last write that is in it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) data: Raw,
    pub(crate) write: u64,
}

/// Operations of an update, read and as they came.
#[derive(Debug)]
pub(crate) struct Ops {
    pub(crate) ops: Vec<Op>,
    pub(crate) raw: Raw,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the Redis failed: {0}")]
    Redis(#[from] redis::RedisError),
    /// The other engine's own words.
    #[error(transparent)]
    Remote(ErrorBody),
    #[error("the other engine failed: {0}")]
    Bridge(CallError),
    #[error("what is stored or was answered cannot be read: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("too many others change the same item")]
    Contended,
    #[error("the item would have {bytes} bytes, and at most {MAX_ITEM_BYTES} are allowed")]
    TooLarge { bytes: usize },
    #[error("the items are larger than a message may be")]
    TooMuch,
    #[error("a stream's name with `:` cannot be kept at a Redis")]
    Colon,
    #[error("the task that reads was ended")]
    Ended,
}

pub(crate) enum Adapter {
    Kv(Kv),
    Redis(Redis),
    Bridge(Bridge),
}

/// An adapter and those who see its events.
pub(crate) struct Place {
    pub(crate) config: AdapterConfig,
    pub(crate) adapter: Adapter,
    pub(crate) hub: Arc<Hub>,
}

impl Place {
    /// # Errors
    /// The file cannot be opened, or nobody answers.
    pub(crate) async fn open(config: AdapterConfig, triggers: &Arc<Triggers>) -> Result<Self, BuiltinError> {
        let hub = Arc::new(Hub::new(Arc::clone(triggers)));
        let adapter = match &config {
            AdapterConfig::Memory => Adapter::Kv(Kv::in_memory(Arc::clone(&hub))?),
            AdapterConfig::File(folder) => Adapter::Kv(Kv::open(folder, Arc::clone(&hub))?),
            AdapterConfig::Redis(url) => Adapter::Redis(Redis::connect(url, &hub).await?),
            AdapterConfig::Bridge(url) => Adapter::Bridge(Bridge::connect(url, &hub).await?),
        };
        Ok(Self { config, adapter, hub })
    }
}

impl Adapter {
    pub(crate) async fn set(&self, key: ItemKey, data: Raw, trace: Trace) -> Result<Written, AdapterError> {
        let data = sized(data)?;
        match self {
            Self::Kv(kv) => kv.set(key, data, trace).await,
            Self::Redis(redis) => redis.set(key, data, trace).await,
            Self::Bridge(bridge) => bridge.set(key, data, trace).await,
        }
    }

    pub(crate) async fn update(&self, key: ItemKey, ops: Ops, trace: Trace) -> Result<Written, AdapterError> {
        match self {
            Self::Kv(kv) => kv.update(key, ops, trace).await,
            Self::Redis(redis) => redis.update(key, ops, trace).await,
            Self::Bridge(bridge) => bridge.update(key, ops, trace).await,
        }
    }

    pub(crate) async fn delete(&self, key: ItemKey, trace: Trace) -> Result<Deleted, AdapterError> {
        match self {
            Self::Kv(kv) => kv.delete(key, trace).await,
            Self::Redis(redis) => redis.delete(key, trace).await,
            Self::Bridge(bridge) => bridge.delete(key, trace).await,
        }
    }

    pub(crate) async fn get(&self, key: &ItemKey) -> Result<Option<Raw>, AdapterError> {
        match self {
            Self::Kv(kv) => kv.get(key),
            Self::Redis(redis) => redis.get(key).await,
            Self::Bridge(bridge) => bridge.get(key).await,
        }
    }

    pub(crate) async fn list(&self, stream_name: &str, group_id: &str) -> Result<Raw, AdapterError> {
        Ok(self.snapshot(stream_name, group_id, None, MAX_LIST_BYTES).await?.data)
    }

    /// Sorted.
    pub(crate) async fn list_groups(&self, stream_name: &str) -> Result<Vec<String>, AdapterError> {
        match self {
            Self::Kv(kv) => kv.list_groups(stream_name).await,
            Self::Redis(redis) => redis.list_groups(stream_name).await,
            Self::Bridge(bridge) => bridge.list_groups(stream_name).await,
        }
    }

    /// The groups of each stream.
    pub(crate) async fn list_all(&self) -> Result<BTreeMap<String, Vec<String>>, AdapterError> {
        match self {
            Self::Kv(kv) => kv.list_all().await,
            Self::Redis(redis) => redis.list_all().await,
            Self::Bridge(bridge) => bridge.list_all().await,
        }
    }

    /// What is there now: an item, or `null`; or the list of a group, of at most about `limit` bytes.
    pub(crate) async fn snapshot(
        &self,
        stream_name: &str,
        group_id: &str,
        item_id: Option<&str>,
        limit: usize,
    ) -> Result<Snapshot, AdapterError> {
        let snapshot = match self {
            Self::Kv(kv) => kv.snapshot(stream_name, group_id, item_id, limit).await?,
            Self::Redis(redis) => redis.snapshot(stream_name, group_id, item_id).await?,
            Self::Bridge(bridge) => bridge.snapshot(stream_name, group_id, item_id).await?,
        };
        if snapshot.data.get().len() > limit {
            return Err(AdapterError::TooMuch);
        }
        Ok(snapshot)
    }

    /// Tells of what no write of this adapter did.
    pub(crate) async fn emit(&self, emitted: Emitted) -> Result<(), AdapterError> {
        match self {
            Self::Kv(kv) => kv.emit(emitted),
            Self::Redis(redis) => redis.emit(&emitted).await?,
            Self::Bridge(bridge) => bridge.emit(emitted).await,
        }
        Ok(())
    }
}

/// Values as a list.
pub(crate) fn list(values: &[Raw]) -> Result<Raw, AdapterError> {
    Ok(serde_json::value::to_raw_value(values)?)
}

/// What operations make of a value: the value after, and those that failed.
pub(crate) fn updated(ops: Vec<Op>, before: Option<&str>) -> Result<(Raw, Option<Raw>), AdapterError> {
    let before = before.map(serde_json::from_str).transpose()?;
    let outcome = engine_updates::apply(ops, before);
    let errors = (!outcome.errors.is_empty()).then(|| serde_json::value::to_raw_value(&outcome.errors)).transpose()?;
    Ok((sized(serde_json::value::to_raw_value(&outcome.value)?)?, errors))
}

fn sized(data: Raw) -> Result<Raw, AdapterError> {
    match data.get().len() {
        0..=MAX_ITEM_BYTES => Ok(data),
        bytes => Err(AdapterError::TooLarge { bytes }),
    }
}
