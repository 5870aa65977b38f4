//! The worker's settings and a trigger's config, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::broker::Subscription;
use crate::delivery::{Backoff, Delivery, Order};
use crate::message::MAX_NAME_BYTES;

/// There whatever the settings say.
pub(crate) const DEFAULT_QUEUE: &str = "default";

const DEFAULT_FOLDER: &str = "./data/queue";
const ADAPTERS: &str = "`builtin`, `redis`, `rabbitmq` or `bridge`";

/// For a call out of a named queue: several functions share the queue, and one that hangs may not keep it for ever.
pub(crate) const DEFAULT_TIMEOUT_MS: u64 = 30 * 60 * 1000;

/// Largest `concurrency`: that many payloads may be in memory.
pub(crate) const MAX_CONCURRENCY: usize = 10_000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SettingsError {
    #[error("`{key}`: {reason}")]
    Malformed { key: String, reason: String },
    #[error("`{key}` is `{value}`; it must be {expected}")]
    Value { key: String, value: String, expected: String },
    #[error("`queue_configs.{queue}.message_group_field` is missing: a fifo queue needs it")]
    NoGroupField { queue: String },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QueueSettings {
    pub(crate) delivery: Delivery,
    /// Set for fifo queues.
    pub(crate) group_field: Option<String>,
    /// As given, with defaults: what `topic_stats` shows.
    pub(crate) shown: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    Folder(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Adapter {
    Builtin(Place),
    Redis { url: String },
    RabbitMq { url: String },
    Bridge { url: String },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QueueWorkerSettings {
    pub(crate) adapter: Adapter,
    pub(crate) queues: BTreeMap<String, QueueSettings>,
    /// What subscriptions begin with.
    pub(crate) subscriptions: Delivery,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Written {
    adapter: Option<WrittenAdapter>,
    queue_configs: Option<BTreeMap<String, WrittenQueue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAdapter {
    name: String,
    config: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenBuiltin {
    store_method: Option<String>,
    file_path: Option<String>,
    /// Means nothing: what is acknowledged is on disk.
    #[serde(rename = "save_interval_ms")]
    _save_interval_ms: Option<u64>,
    max_attempts: Option<u32>,
    backoff_ms: Option<u64>,
    concurrency: Option<usize>,
    /// Means nothing: consumers are woken.
    #[serde(rename = "poll_interval_ms")]
    _poll_interval_ms: Option<u64>,
    mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenRedis {
    redis_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenBridge {
    bridge_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenRabbitMq {
    amqp_url: Option<String>,
    max_attempts: Option<u32>,
    prefetch_count: Option<u16>,
    queue_mode: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenQueue {
    max_retries: u32,
    concurrency: usize,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_group_field: Option<String>,
    backoff_ms: u64,
    timeout_ms: u64,
    poll_interval_ms: u64,
}

impl Default for WrittenQueue {
    fn default() -> Self {
        Self {
            max_retries: 3,
            concurrency: 10,
            r#type: "standard".to_owned(),
            message_group_field: None,
            backoff_ms: 1000,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            poll_interval_ms: 100,
        }
    }
}

#[derive(Deserialize)]
struct WrittenTrigger {
    topic: Option<String>,
    condition_function_id: Option<String>,
    queue_config: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WrittenSubscription {
    r#type: Option<String>,
    max_retries: Option<u32>,
    concurrency: Option<usize>,
    /// In seconds, like `delaySeconds`.
    visibility_timeout: Option<u64>,
    delay_seconds: Option<u64>,
    backoff_type: Option<String>,
    backoff_delay_ms: Option<u64>,
}

impl QueueWorkerSettings {
    /// # Errors
    /// The key and the value that do not fit.
    pub(crate) fn parse(settings: &Value) -> Result<Self, SettingsError> {
        let written: Written = optional(settings, "")?;
        let mut subscriptions = Delivery {
            order: Order::Standard,
            max_attempts: 3,
            concurrency: 10,
            backoff_ms: 1000,
            backoff: Backoff::Exponential,
            delay_ms: 0,
            timeout_ms: None,
        };
        let adapter = adapter(written.adapter, &mut subscriptions)?;
        let mut queues = BTreeMap::new();
        for (name, queue) in written.queue_configs.unwrap_or_default() {
            let checked = check_queue(&name, queue)?;
            queues.insert(name, checked);
        }
        if !queues.contains_key(DEFAULT_QUEUE) {
            queues.insert(DEFAULT_QUEUE.to_owned(), check_queue(DEFAULT_QUEUE, WrittenQueue::default())?);
        }
        Ok(Self { adapter, queues, subscriptions })
    }
}

fn adapter(written: Option<WrittenAdapter>, subscriptions: &mut Delivery) -> Result<Adapter, SettingsError> {
    let written = written.unwrap_or_else(|| WrittenAdapter { name: "builtin".to_owned(), config: None });
    let config = written.config.unwrap_or(Value::Null);
    const KEY: &str = "adapter.config";
    match written.name.as_str() {
        "builtin" => {
            let config: WrittenBuiltin = optional(&config, KEY)?;
            if let Some(max_attempts) = config.max_attempts {
                subscriptions.max_attempts = at_least_one(&format!("{KEY}.max_attempts"), max_attempts)?;
            }
            if let Some(concurrency) = config.concurrency {
                subscriptions.concurrency = check_concurrency(&format!("{KEY}.concurrency"), concurrency)?;
            }
            if let Some(backoff_ms) = config.backoff_ms {
                subscriptions.backoff_ms = backoff_ms;
            }
            if let Some(mode) = &config.mode {
                subscriptions.order = match mode.as_str() {
                    "concurrent" => Order::Standard,
                    other => order(&format!("{KEY}.mode"), other, "`concurrent`, `standard` or `fifo`")?,
                };
            }
            let folder = config.file_path.map_or_else(|| PathBuf::from(DEFAULT_FOLDER), PathBuf::from);
            match config.store_method.as_deref() {
                None | Some("file_based") => Ok(Adapter::Builtin(Place::Folder(folder))),
                Some("in_memory") => Ok(Adapter::Builtin(Place::Memory)),
                Some(other) => Err(wrong(format!("{KEY}.store_method"), other, "`file_based` or `in_memory`")),
            }
        }
        "redis" => {
            let config: WrittenRedis = optional(&config, KEY)?;
            let url = config.redis_url.unwrap_or_else(|| "redis://localhost:6379".to_owned());
            check_scheme(&format!("{KEY}.redis_url"), &url, &["redis://", "rediss://"])?;
            Ok(Adapter::Redis { url })
        }
        "rabbitmq" => {
            let config: WrittenRabbitMq = optional(&config, KEY)?;
            let url = config.amqp_url.unwrap_or_else(|| "amqp://localhost:5672".to_owned());
            check_scheme(&format!("{KEY}.amqp_url"), &url, &["amqp://", "amqps://"])?;
            let attempts = config.max_attempts.unwrap_or(3);
            subscriptions.max_attempts = at_least_one(&format!("{KEY}.max_attempts"), attempts)?;
            let mode = config.queue_mode.as_deref().unwrap_or("standard");
            subscriptions.order = order(&format!("{KEY}.queue_mode"), mode, "`standard` or `fifo`")?;
            let prefetch = at_least_one(&format!("{KEY}.prefetch_count"), config.prefetch_count.unwrap_or(10))?;
            subscriptions.concurrency = usize::from(prefetch);
            Ok(Adapter::RabbitMq { url })
        }
        "bridge" => {
            let config: WrittenBridge = optional(&config, KEY)?;
            let url = config.bridge_url.unwrap_or_else(|| "ws://localhost:49134".to_owned());
            check_scheme(&format!("{KEY}.bridge_url"), &url, &["ws://"])?;
            Ok(Adapter::Bridge { url })
        }
        other => Err(wrong("adapter.name".to_owned(), other, ADAPTERS)),
    }
}

fn check_queue(name: &str, written: WrittenQueue) -> Result<QueueSettings, SettingsError> {
    let key = |field: &str| format!("queue_configs.{name}.{field}");
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(wrong("queue_configs".to_owned(), name, &format!("names of 1 to {MAX_NAME_BYTES} bytes")));
    }
    let order = order(&key("type"), &written.r#type, "`standard` or `fifo`")?;
    let delivery = Delivery {
        order,
        max_attempts: written.max_retries.max(1),
        concurrency: check_concurrency(&key("concurrency"), written.concurrency)?,
        backoff_ms: written.backoff_ms,
        backoff: Backoff::Exponential,
        delay_ms: 0,
        timeout_ms: Some(at_least_one(&key("timeout_ms"), written.timeout_ms)?),
    };
    let group_field = match (order, written.message_group_field.as_deref().filter(|field| !field.is_empty())) {
        (Order::Fifo, None) => return Err(SettingsError::NoGroupField { queue: name.to_owned() }),
        (Order::Fifo, Some(field)) => Some(field.to_owned()),
        (Order::Standard, _) => None,
    };
    let shown = serde_json::to_value(&written).unwrap_or_default();
    Ok(QueueSettings { delivery, group_field, shown })
}

/// A trigger's config: its topic and how it wants messages. The topic may be empty: such a trigger never fires.
///
/// # Errors
/// The key and the value that do not fit.
pub(crate) fn parse_trigger(config: &Value, defaults: &Delivery) -> Result<(String, Subscription), SettingsError> {
    let written: WrittenTrigger = typed(config, "config")?;
    const KEY: &str = "config.queue_config";
    let given = written.queue_config.filter(|given| !given.is_null());
    let asked: WrittenSubscription = optional(given.as_ref().unwrap_or(&Value::Null), KEY)?;
    let mut delivery = defaults.clone();
    if let Some(kind) = asked.r#type.as_deref() {
        delivery.order = if kind == "fifo" { Order::Fifo } else { Order::Standard };
    }
    if let Some(max_attempts) = asked.max_retries {
        delivery.max_attempts = max_attempts.max(1);
    }
    if let Some(concurrency) = asked.concurrency {
        delivery.concurrency = check_concurrency(&format!("{KEY}.concurrency"), concurrency)?;
    }
    delivery.timeout_ms = asked.visibility_timeout.filter(|seconds| *seconds > 0).map(|s| s.saturating_mul(1000));
    if let Some(seconds) = asked.delay_seconds {
        delivery.delay_ms = seconds.saturating_mul(1000);
    }
    if let Some(backoff) = asked.backoff_type.as_deref() {
        delivery.backoff = match backoff {
            "fixed" => Backoff::Fixed,
            "exponential" => Backoff::Exponential,
            other => return Err(wrong(format!("{KEY}.backoffType"), other, "`exponential` or `fixed`")),
        };
    }
    if let Some(backoff_ms) = asked.backoff_delay_ms {
        delivery.backoff_ms = backoff_ms;
    }
    let topic = written.topic.unwrap_or_default();
    if topic.len() > MAX_NAME_BYTES {
        return Err(wrong("config.topic".to_owned(), &topic, &format!("at most {MAX_NAME_BYTES} bytes long")));
    }
    let condition = written.condition_function_id.filter(|id| !id.is_empty());
    Ok((topic, Subscription { condition, delivery, queue_config: given }))
}

fn order(key: &str, value: &str, expected: &str) -> Result<Order, SettingsError> {
    match value {
        "standard" => Ok(Order::Standard),
        "fifo" => Ok(Order::Fifo),
        other => Err(wrong(key.to_owned(), other, expected)),
    }
}

fn check_concurrency(key: &str, value: usize) -> Result<usize, SettingsError> {
    if (1..=MAX_CONCURRENCY).contains(&value) {
        return Ok(value);
    }
    Err(wrong(key.to_owned(), &value.to_string(), &format!("1 to {MAX_CONCURRENCY}")))
}

fn at_least_one<N: PartialOrd + From<u8> + ToString>(key: &str, value: N) -> Result<N, SettingsError> {
    if value >= N::from(1) { Ok(value) } else { Err(wrong(key.to_owned(), &value.to_string(), "at least 1")) }
}

fn check_scheme(key: &str, url: &str, schemes: &[&str]) -> Result<(), SettingsError> {
    if schemes.iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
        return Ok(());
    }
    Err(wrong(key.to_owned(), url, &format!("an address that begins with {}", schemes.join(" or "))))
}

fn wrong(key: String, value: &str, expected: &str) -> SettingsError {
    let value = value.chars().take(100).collect();
    SettingsError::Value { key, value, expected: expected.to_owned() }
}

/// `null` is all defaults.
fn optional<T: DeserializeOwned + Default>(value: &Value, key: &str) -> Result<T, SettingsError> {
    if value.is_null() { Ok(T::default()) } else { typed(value, key) }
}

fn typed<T: DeserializeOwned>(value: &Value, key: &str) -> Result<T, SettingsError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let key = match (key, path.as_str()) {
            ("", ".") => "config".to_owned(),
            ("", path) => path.to_owned(),
            (key, ".") => key.to_owned(),
            (key, path) => format!("{key}.{path}"),
        };
        SettingsError::Malformed { key, reason: error.inner().to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(settings: &Value) -> String {
        QueueWorkerSettings::parse(settings).expect_err("refused").to_string()
    }

    #[test]
    fn no_settings_are_the_defaults() {
        let settings = QueueWorkerSettings::parse(&Value::Null).expect("settings");
        assert_eq!(settings.adapter, Adapter::Builtin(Place::Folder(DEFAULT_FOLDER.into())));
        let queue = &settings.queues[DEFAULT_QUEUE];
        assert_eq!((queue.delivery.max_attempts, queue.delivery.concurrency), (3, 10));
        assert_eq!(settings, QueueWorkerSettings::parse(&json!({})).expect("settings"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_key_and_value() {
        for (settings, key, value) in [
            (json!({"adaptor": 1}), "adaptor", "adaptor"),
            (json!({"adapter": {"name": "kafka"}}), "adapter.name", "kafka"),
            (json!({"adapter": {"name": "builtin", "config": {"pat": 1}}}), "adapter.config.pat", "pat"),
            (
                json!({"adapter": {"name": "builtin", "config": {"store_method": "tape"}}}),
                "adapter.config.store_method",
                "tape",
            ),
            (json!({"adapter": {"name": "builtin", "config": {"mode": "random"}}}), "adapter.config.mode", "random"),
            (json!({"adapter": {"name": "redis", "config": {"redis_url": "http://x"}}}), "redis_url", "http://x"),
            (json!({"adapter": {"name": "rabbitmq", "config": {"prefetch_count": 0}}}), "prefetch_count", "0"),
            (json!({"adapter": {"name": "rabbitmq", "config": {"queue_mode": "lazy"}}}), "queue_mode", "lazy"),
            (json!({"adapter": {"name": "bridge", "config": {"bridge_url": "ftp"}}}), "bridge_url", "ftp"),
            (json!({"queue_configs": {"a": {"type": "lifo"}}}), "queue_configs.a.type", "lifo"),
            (json!({"queue_configs": {"a": {"type": "fifo"}}}), "queue_configs.a.message_group_field", "missing"),
            (json!({"queue_configs": {"a": {"concurrency": 0}}}), "queue_configs.a.concurrency", "0"),
            (json!({"queue_configs": {"a": {"timeout_ms": 0}}}), "queue_configs.a.timeout_ms", "0"),
            (json!({"queue_configs": {"a": {"retries": 0}}}), "queue_configs.a.retries", "retries"),
            (json!({"queue_configs": {"a": {"backoff_ms": "soon"}}}), "queue_configs.a.backoff_ms", "soon"),
            (json!({"queue_configs": {"": {}}}), "queue_configs", "names"),
        ] {
            let message = refused(&settings);
            assert!(message.contains(key) && message.contains(value), "{settings}: {message}");
        }
    }

    #[test]
    fn a_trigger_says_how_it_wants_its_messages() {
        let defaults = QueueWorkerSettings::parse(&Value::Null).expect("settings").subscriptions;
        let config = json!({"topic": "t", "condition_function_id": "", "queue_config": {"type": "fifo",
            "maxRetries": 0, "visibilityTimeout": 30, "delaySeconds": 2, "backoffType": "fixed", "backoffDelayMs": 5}});
        let (topic, subscription) = parse_trigger(&config, &defaults).expect("a subscription");
        assert_eq!((topic.as_str(), subscription.condition), ("t", None));
        let delivery = subscription.delivery;
        assert_eq!((delivery.order, delivery.max_attempts, delivery.in_flight()), (Order::Fifo, 1, 1));
        assert_eq!((delivery.timeout_ms, delivery.delay_ms), (Some(30_000), 2000));
        assert_eq!((delivery.backoff, delivery.backoff_ms), (Backoff::Fixed, 5));
        let plain = parse_trigger(&json!({"topic": "", "queue_config": null}), &defaults).expect("a subscription");
        assert_eq!((plain.0.as_str(), plain.1.delivery), ("", defaults.clone()));
        let refused = parse_trigger(&json!({"topic": "t", "queue_config": {"concurrency": 0}}), &defaults);
        assert!(refused.is_err_and(|error| error.to_string().contains("config.queue_config.concurrency")));
    }
}
