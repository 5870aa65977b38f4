//! One message as it lies in a queue, and the names of queues.

use engine_builtin::{Raw, Trace};
use serde::{Deserialize, Serialize};

use crate::broker::DeadMessageRow;

/// Longest name of a queue, topic or function, in bytes: they are parts of keys.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// Where a message waits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QueueId {
    /// A queue of `queue_configs`.
    Named(String),
    /// What one function is to get of a topic.
    Subscriber { topic: String, function_id: String },
    /// What was published to a topic that nobody subscribes to.
    Held(String),
}

impl QueueId {
    /// The queue or topic, as users know it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Named(name) | Self::Held(name) | Self::Subscriber { topic: name, .. } => name,
        }
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        match self {
            Self::Named(name) => engine_store::key(&[b"n", name.as_bytes()]),
            Self::Subscriber { topic, function_id } => {
                engine_store::key(&[b"s", topic.as_bytes(), function_id.as_bytes()])
            }
            Self::Held(topic) => engine_store::key(&[b"t", topic.as_bytes()]),
        }
    }
}

/// One message of one queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: String,
    /// Empty while nobody subscribes to its topic.
    pub(crate) function_id: String,
    pub(crate) data: Raw,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baggage: Option<String>,
    /// Messages of one group are delivered one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Failed deliveries.
    #[serde(default)]
    pub(crate) attempts: u32,
    /// Not to be delivered before, in milliseconds since 1970; 0 is at once.
    #[serde(default)]
    pub(crate) due_ms: u64,
}

impl Message {
    pub(crate) fn new(function_id: impl Into<String>, data: Raw, trace: Trace) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            function_id: function_id.into(),
            data,
            traceparent: trace.traceparent,
            baggage: trace.baggage,
            group: None,
            attempts: 0,
            due_ms: 0,
        }
    }

    pub(crate) fn trace(&self) -> Trace {
        Trace { traceparent: self.traceparent.clone(), baggage: self.baggage.clone() }
    }

    /// What it occupies in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let names = self.id.len() + self.function_id.len() + text(&self.group);
        size_of::<Self>() + names + self.data.get().len() + text(&self.traceparent) + text(&self.baggage)
    }
}

/// A message that was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeadMessage {
    pub(crate) queue: QueueId,
    /// Of the last attempt.
    pub(crate) error: String,
    pub(crate) failed_at_ms: u64,
    pub(crate) message: Message,
}

/// Milliseconds since 1970: what is due has to be known after a restart, too.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl From<DeadMessage> for DeadMessageRow {
    fn from(dead: DeadMessage) -> Self {
        Self {
            id: dead.message.id,
            size_bytes: dead.message.data.get().len(),
            payload: dead.message.data,
            error: dead.error,
            failed_at: dead.failed_at_ms / 1000,
            retries: dead.message.attempts,
        }
    }
}
