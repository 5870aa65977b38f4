//! The worker's settings.

use engine_builtin::{BuiltinError, Settings};
use serde::Deserialize;
use serde_json::{Value, json};

const DEFAULT_REDIS: &str = "redis://localhost:6379";

/// Where locks are to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Adapter {
    Kv,
    Redis { url: String },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Block {
    adapter: Option<AdapterEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdapterEntry {
    name: String,
    #[serde(default)]
    config: Value,
}

/// Accepted, and without effect: a lock in the process ends with its holder.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KvConfig {
    #[serde(rename = "store_method")]
    _store_method: Option<String>,
    #[serde(rename = "file_path")]
    _file_path: Option<String>,
    #[serde(rename = "save_interval_ms")]
    _save_interval_ms: Option<u64>,
    #[serde(rename = "lock_ttl_ms")]
    _lock_ttl_ms: Option<u64>,
    #[serde(rename = "lock_index")]
    _lock_index: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RedisConfig {
    redis_url: Option<String>,
}

/// # Errors
/// Names the key and value that do not fit.
pub(crate) fn adapter(settings: Settings) -> Result<Adapter, BuiltinError> {
    let block: Option<Block> = read("", settings)?;
    let Some(entry) = block.unwrap_or_default().adapter else { return Ok(Adapter::Kv) };
    match entry.name.as_str() {
        "kv" => {
            read::<Option<KvConfig>>("adapter.config: ", entry.config)?;
            Ok(Adapter::Kv)
        }
        "redis" => {
            let config: Option<RedisConfig> = read("adapter.config: ", entry.config)?;
            Ok(Adapter::Redis { url: config.unwrap_or_default().redis_url.unwrap_or_else(|| DEFAULT_REDIS.into()) })
        }
        other => Err(BuiltinError::Settings(format!("adapter.name: `{other}` is neither `kv` nor `redis`"))),
    }
}

fn read<T: for<'de> Deserialize<'de>>(place: &str, value: Value) -> Result<T, BuiltinError> {
    serde_json::from_value(value).map_err(|error| BuiltinError::Settings(format!("{place}{error}")))
}

/// What the settings look like.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "adapter": {
                "description": "Where the locks are kept that let a job run once at a time.",
                "default": { "name": "kv" },
                "oneOf": [
                    {
                        "type": "object",
                        "description": "In this engine: for an engine that shares its jobs with no other.",
                        "additionalProperties": false,
                        "required": ["name"],
                        "properties": {
                            "name": { "const": "kv" },
                            "config": {
                                "type": "object",
                                "description": "Accepted for compatibility. A lock ends with its run, and is not stored.",
                                "additionalProperties": false,
                                "properties": {
                                    "store_method": { "enum": ["in_memory", "file_based"], "description": "Without effect." },
                                    "file_path": { "type": "string", "description": "Without effect." },
                                    "save_interval_ms": { "type": "integer", "minimum": 100, "maximum": 3_600_000, "description": "Without effect." },
                                    "lock_ttl_ms": { "type": "integer", "minimum": 1, "default": 30_000, "description": "Without effect: a lock is held for as long as its job runs." },
                                    "lock_index": { "type": "string", "default": "cron_locks", "description": "Without effect." }
                                }
                            }
                        }
                    },
                    {
                        "type": "object",
                        "description": "In Redis: of all engines that share it, one runs a job.",
                        "additionalProperties": false,
                        "required": ["name"],
                        "properties": {
                            "name": { "const": "redis" },
                            "config": {
                                "type": "object",
                                "additionalProperties": false,
                                "properties": {
                                    "redis_url": { "type": "string", "default": DEFAULT_REDIS, "description": "Where Redis is." }
                                }
                            }
                        }
                    }
                ]
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(settings: Value, why: &str) {
        let error = adapter(settings).expect_err("bad settings").to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn locks_are_in_the_process_unless_redis_is_named() {
        for settings in [
            Value::Null,
            json!({}),
            json!({ "adapter": null }),
            json!({ "adapter": { "name": "kv" } }),
            json!({ "adapter": { "name": "kv", "config": { "lock_ttl_ms": 5, "lock_index": "x", "store_method": "file_based", "file_path": "./x", "save_interval_ms": 100 } } }),
        ] {
            assert_eq!(adapter(settings).expect("settings"), Adapter::Kv);
        }
        assert_eq!(
            adapter(json!({ "adapter": { "name": "redis", "config": { "redis_url": "redis://r:1" } } }))
                .expect("settings"),
            Adapter::Redis { url: "redis://r:1".into() }
        );
        assert_eq!(
            adapter(json!({ "adapter": { "name": "redis" } })).expect("settings"),
            Adapter::Redis { url: DEFAULT_REDIS.into() }
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        refused(json!({ "adaptor": 1 }), "unknown field `adaptor`");
        refused(json!({ "adapter": { "name": "etcd" } }), "adapter.name: `etcd`");
        refused(
            json!({ "adapter": { "name": "redis", "config": { "url": "x" } } }),
            "adapter.config: unknown field `url`",
        );
        refused(json!({ "adapter": { "name": "kv", "config": { "lock_ttl_ms": "soon" } } }), "\"soon\"");
    }
}
