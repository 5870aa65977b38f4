//! What an adapter does: keeps messages and delivers them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use engine_builtin::{BoxFuture, ErrorBody, Raw, Trace};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::delivery::Delivery;
use crate::settings::QueueSettings;

/// Why a queue did not do what it was asked to. Which code that is depends on the function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("queue `{0}` is not configured: add it to `queue_configs` of iii-queue")]
    UnknownQueue(String),
    #[error("queue `{queue}` is fifo: `data` needs a top-level field `{field}` that is not null")]
    NoGroup { queue: String, field: String },
    #[error("field `{field}` of `data` is longer than {limit} bytes: too long for the name of a group")]
    GroupTooLong { field: String, limit: usize },
    #[error("{what} is {bytes} bytes long; the limit is {limit}")]
    NameTooLong { what: &'static str, bytes: usize, limit: usize },
    #[error("the `{adapter}` adapter has no {what}")]
    Unsupported { adapter: &'static str, what: &'static str },
    #[error("the queue's store: {0}")]
    Store(String),
    #[error("{broker} at {url}: {reason}")]
    Remote { broker: &'static str, url: String, reason: String },
}

impl From<engine_store::StoreError> for QueueError {
    fn from(error: engine_store::StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Store(format!("{error}{cause}"))
    }
}

impl QueueError {
    pub(crate) fn body(&self, code: &str) -> ErrorBody {
        ErrorBody::new(code, self.to_string())
    }
}

/// How a function wants to get a topic's messages.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subscription {
    pub(crate) condition: Option<String>,
    pub(crate) delivery: Delivery,
    /// As the trigger's config says it.
    pub(crate) queue_config: Option<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TopicRow {
    pub(crate) name: String,
    pub(crate) broker_type: Cow<'static, str>,
    pub(crate) subscriber_count: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TopicStats {
    pub(crate) depth: u64,
    pub(crate) consumer_count: u64,
    pub(crate) dlq_depth: u64,
    pub(crate) config: Value,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeadTopicRow {
    pub(crate) topic: String,
    pub(crate) broker_type: Cow<'static, str>,
    pub(crate) message_count: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeadMessageRow {
    pub(crate) id: String,
    pub(crate) payload: Box<RawValue>,
    pub(crate) error: String,
    /// Seconds since 1970.
    pub(crate) failed_at: u64,
    pub(crate) retries: u32,
    pub(crate) size_bytes: usize,
}

pub(crate) type Done<'a, T> = BoxFuture<'a, Result<T, QueueError>>;

/// One adapter. What is answered `Ok` by [`publish`](Self::publish) or [`enqueue`](Self::enqueue) is kept.
pub(crate) trait Broker: Send + Sync {
    /// Consumers may begin.
    fn start(&self) -> Done<'_, ()>;

    /// No delivery begins any more; those in flight have a moment to end.
    fn stop(&self) -> BoxFuture<'_, ()>;

    fn publish(&self, topic: String, data: Raw, trace: Trace) -> Done<'_, ()>;

    /// `group` is set for fifo queues. The answer is the message's id.
    fn enqueue(&self, queue: String, message: crate::message::Message) -> Done<'_, String>;

    /// A function subscribes, changes how it does, or (`None`) has no binding left. Under the router's lock.
    fn subscribe(&self, topic: &str, function_id: &str, subscription: Option<Subscription>);

    /// All named queues there are from now on.
    fn set_queues(&self, queues: &BTreeMap<String, QueueSettings>);

    /// How many messages went back.
    fn redrive(&self, name: String) -> Done<'_, u64>;

    fn redrive_message(&self, name: String, id: String) -> Done<'_, bool>;

    fn discard_message(&self, name: String, id: String) -> Done<'_, bool>;

    fn topics(&self) -> Done<'_, Vec<TopicRow>>;

    fn stats(&self, name: String) -> Done<'_, TopicStats>;

    fn dead_topics(&self) -> Done<'_, Vec<DeadTopicRow>>;

    /// Newest first.
    fn dead_messages(&self, name: String, offset: usize, limit: usize) -> Done<'_, Vec<DeadMessageRow>>;
}

/// Addresses end up in logs.
pub(crate) fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://****{}", &url[..scheme], &url[at..]),
        _ => url.to_owned(),
    }
}
