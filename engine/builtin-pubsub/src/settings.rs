//! The settings, checked.

use engine_builtin::{BuiltinError, Settings};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const DEFAULT_REDIS_URL: &str = "redis://localhost:6379";

/// How messages travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AdapterSettings {
    /// Inside this engine.
    Local,
    /// To every engine at this Redis.
    Redis { url: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    adapter: Option<AdapterBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdapterBlock {
    name: String,
    config: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalBlock {}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RedisBlock {
    redis_url: Option<String>,
}

/// # Errors
/// Which key does not fit.
pub(crate) fn parse(settings: Settings) -> Result<AdapterSettings, BuiltinError> {
    let block: Option<Block> =
        serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    let Some(adapter) = block.and_then(|block| block.adapter) else { return Ok(AdapterSettings::Local) };
    match adapter.name.as_str() {
        "local" => config::<LocalBlock>(adapter.config).map(|LocalBlock {}| AdapterSettings::Local),
        "redis" => {
            let block: RedisBlock = config(adapter.config)?;
            Ok(AdapterSettings::Redis { url: block.redis_url.unwrap_or_else(|| DEFAULT_REDIS_URL.to_owned()) })
        }
        name => Err(BuiltinError::Settings(format!("adapter.name: `{name}` is neither `local` nor `redis`"))),
    }
}

fn config<T: DeserializeOwned + Default>(config: Option<Value>) -> Result<T, BuiltinError> {
    let Some(config) = config else { return Ok(T::default()) };
    serde_json::from_value(config).map_err(|error| BuiltinError::Settings(format!("adapter.config: {error}")))
}

/// What the settings look like.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "adapter": {
                "description": "How messages travel. Changing it re-subscribes everything first.",
                "default": { "name": "local" },
                "oneOf": [
                    {
                        "type": "object",
                        "description": "Inside this engine.",
                        "additionalProperties": false,
                        "required": ["name"],
                        "properties": {
                            "name": { "const": "local" },
                            "config": { "type": "object", "additionalProperties": false }
                        }
                    },
                    {
                        "type": "object",
                        "description": "To every engine at one Redis; a topic is a channel.",
                        "additionalProperties": false,
                        "required": ["name"],
                        "properties": {
                            "name": { "const": "redis" },
                            "config": {
                                "type": "object",
                                "additionalProperties": false,
                                "properties": {
                                    "redis_url": {
                                        "type": "string",
                                        "description": "Where the Redis listens.",
                                        "default": DEFAULT_REDIS_URL
                                    }
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

    #[test]
    fn nothing_means_local() {
        for settings in [json!(null), json!({}), json!({ "adapter": { "name": "local", "config": {} } })] {
            assert_eq!(parse(settings).expect("settings"), AdapterSettings::Local);
        }
    }

    #[test]
    fn a_redis_has_a_default_address() {
        let parsed = parse(json!({ "adapter": { "name": "redis" } })).expect("settings");
        assert_eq!(parsed, AdapterSettings::Redis { url: DEFAULT_REDIS_URL.into() });
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |settings| parse(settings).expect_err("refused").to_string();
        assert!(refused(json!({ "adaptor": 1 })).contains("adaptor"));
        assert!(refused(json!({ "adapter": { "name": "kafka" } })).contains("kafka"));
        assert!(refused(json!({ "adapter": { "name": "local", "config": { "url": 1 } } })).contains("url"));
        assert!(refused(json!({ "adapter": { "name": "redis", "config": { "url": 1 } } })).contains("url"));
    }
}
