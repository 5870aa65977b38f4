//! The worker's settings: their shape, and what is made of them.

use std::path::PathBuf;

use engine_builtin::{BuiltinError, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::warn;

/// Where the `kv` adapter keeps its file, unless told otherwise.
const FOLDER: &str = "./data/state";
const REDIS_URL: &str = "redis://localhost:6379";
const BRIDGE_URL: &str = "ws://localhost:49134";

/// Largest value: with the one before it and what is around them, it still fits into a message.
pub(crate) const MAX_VALUE_BYTES: usize = 15 * 1024 * 1024;

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) adapter: AdapterConfig,
    pub(crate) triggers_enabled: bool,
    /// JSON text of a value.
    pub(crate) max_value_bytes: usize,
}

/// What keeps the values. Taken when the engine starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", content = "config", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum AdapterConfig {
    Kv(KvConfig),
    Redis(RedisConfig),
    Bridge(BridgeConfig),
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KvConfig {
    pub(crate) store_method: StoreMethod,
    /// A folder.
    pub(crate) file_path: Option<PathBuf>,
    /// Means nothing: every write that is acknowledged is on disk.
    save_interval_ms: Option<Interval>,
}

/// Any number; see [`KvConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Interval(serde_json::Number);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoreMethod {
    #[default]
    FileBased,
    InMemory,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RedisConfig {
    pub(crate) redis_url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BridgeConfig {
    pub(crate) bridge_url: String,
}

impl KvConfig {
    pub(crate) fn folder(&self) -> PathBuf {
        self.file_path.clone().unwrap_or_else(|| PathBuf::from(FOLDER))
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self { redis_url: REDIS_URL.into() }
    }
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self { bridge_url: BRIDGE_URL.into() }
    }
}

/// As the settings are written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Written {
    adapter: Option<Value>,
    triggers_enabled: Option<bool>,
    max_value_bytes: Option<serde_json::Number>,
    #[serde(rename = "save_interval_ms")]
    _save_interval_ms: Option<Interval>,
}

impl Config {
    /// # Errors
    /// [`BuiltinError::Settings`], which names what does not fit.
    pub(crate) fn parse(settings: Settings) -> Result<Self, BuiltinError> {
        let written = match settings {
            Value::Null => Written::default(),
            settings => {
                serde_json::from_value(object(settings)?).map_err(|error| BuiltinError::Settings(error.to_string()))?
            }
        };
        Ok(Self {
            adapter: written.adapter.map_or_else(|| Ok(AdapterConfig::Kv(KvConfig::default())), adapter)?,
            triggers_enabled: written.triggers_enabled.unwrap_or(true),
            max_value_bytes: written
                .max_value_bytes
                .and_then(|number| at_least_one(&number))
                .map_or(MAX_VALUE_BYTES, |bytes| bytes.min(MAX_VALUE_BYTES)),
        })
    }
}

/// A list would be taken for the fields in their order.
fn object(value: Value) -> Result<Value, BuiltinError> {
    if value.is_object() { Ok(value) } else { Err(BuiltinError::Settings(format!("`{value}` is no object"))) }
}

/// `{name, config?}`.
fn adapter(written: Value) -> Result<AdapterConfig, BuiltinError> {
    let mut written = object(written)?;
    written["config"] = match written["config"].take() {
        Value::Null => json!({}),
        config => object(config)?,
    };
    serde_json::from_value(written).map_err(|error| BuiltinError::Settings(format!("adapter: {error}")))
}

/// A limit out of range, in a file that was edited by hand, is none.
fn at_least_one(number: &serde_json::Number) -> Option<usize> {
    let limit = number.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number >= 1);
    if limit.is_none() {
        warn!(max_value_bytes = %number, "out of range, and not used");
    }
    limit
}

/// JSON Schema of the settings.
#[must_use]
pub fn schema() -> Value {
    let interval = json!({
        "type": "integer", "minimum": 100, "maximum": 3_600_000, "default": 5000,
        "description": "Accepted, and means nothing: every write that is acknowledged is on disk."
    });
    let adapter = |name: &str, description: &str, properties: Value| {
        let config = json!({"type": "object", "additionalProperties": false, "properties": properties});
        json!({
            "type": "object", "additionalProperties": false, "required": ["name"], "description": description,
            "properties": {"name": {"const": name}, "config": config}
        })
    };
    let kv = json!({
        "store_method": {
            "enum": ["file_based", "in_memory"], "default": "file_based",
            "description": "`in_memory` loses everything when the engine ends."
        },
        "file_path": {"type": "string", "default": FOLDER, "description": "The folder that the values are kept in."},
        "save_interval_ms": interval
    });
    let redis = json!({
        "redis_url": {"type": "string", "default": REDIS_URL, "description": "A Redis of version 6 or later."}
    });
    let bridge = json!({
        "bridge_url": {"type": "string", "default": BRIDGE_URL, "description": "The engine that keeps the values."}
    });
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "adapter": {
                "description": "What keeps the values. Takes effect when the engine is restarted.",
                "default": {"name": "kv"},
                "oneOf": [
                    adapter("kv", "A file of the engine's own.", kv),
                    adapter("redis", "Hashes in Redis, named `state:<scope>`.", redis),
                    adapter("bridge", "The `state::` functions of another engine.", bridge)
                ]
            },
            "triggers_enabled": {
                "type": "boolean", "default": true,
                "description": "Whether triggers of the type `state` fire. Takes effect at once."
            },
            "max_value_bytes": {
                "type": "integer", "minimum": 1, "default": MAX_VALUE_BYTES,
                "description": "The longest JSON text of a value, 15 MiB at most. Takes effect at once."
            },
            "save_interval_ms": interval
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(settings: Value) -> Config {
        Config::parse(settings).expect("settings")
    }

    fn refused(settings: Value, named: &str) {
        let error = Config::parse(settings).expect_err("no settings").to_string();
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn nothing_at_all_is_a_file_with_triggers_and_no_limit() {
        let default = parsed(Value::Null);
        assert_eq!(default, parsed(json!({})));
        assert_eq!(default.adapter, AdapterConfig::Kv(KvConfig::default()));
        assert_eq!(KvConfig::default().folder(), PathBuf::from("./data/state"));
        assert!(default.triggers_enabled);
        assert_eq!(default.max_value_bytes, MAX_VALUE_BYTES);
    }

    #[test]
    fn an_adapter_has_a_name_and_may_have_settings() {
        let kv = json!({"store_method": "in_memory", "file_path": "/x", "save_interval_ms": 3});
        let AdapterConfig::Kv(kv) = parsed(json!({"adapter": {"name": "kv", "config": kv}})).adapter else {
            panic!("another adapter")
        };
        assert_eq!((kv.store_method, kv.folder()), (StoreMethod::InMemory, PathBuf::from("/x")));
        let redis = parsed(json!({"adapter": {"name": "redis"}})).adapter;
        assert_eq!(redis, AdapterConfig::Redis(RedisConfig { redis_url: REDIS_URL.into() }));
        let bridge = parsed(json!({"adapter": {"name": "bridge", "config": {"bridge_url": "ws://b:1"}}})).adapter;
        assert_eq!(bridge, AdapterConfig::Bridge(BridgeConfig { bridge_url: "ws://b:1".into() }));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        refused(json!({"adaptor": {}}), "adaptor");
        refused(json!({"triggers_enabled": "yes"}), "yes");
        refused(json!({"max_value_bytes": "many"}), "many");
        refused(json!({"adapter": {"name": "etcd"}}), "etcd");
        refused(json!({"adapter": {"name": "kv", "config": {"store": "x"}}}), "store");
        refused(json!({"adapter": {"name": "kv", "config": {"store_method": "tape"}}}), "tape");
        refused(json!({"adapter": {"name": "redis", "config": {}, "url": "x"}}), "url");
        refused(json!({"adapter": "redis"}), "redis");
        refused(json!({"adapter": {"name": "redis", "config": ["x"]}}), "x");
        refused(json!([1]), "[1]");
    }

    #[test]
    fn a_limit_out_of_range_is_the_default() {
        for number in [json!(0), json!(-1), json!(0.5), json!(MAX_VALUE_BYTES + 1)] {
            assert_eq!(parsed(json!({ "max_value_bytes": number })).max_value_bytes, MAX_VALUE_BYTES);
        }
        assert_eq!(parsed(json!({"max_value_bytes": 1, "save_interval_ms": 1})).max_value_bytes, 1);
    }
}
