//! The worker's settings, checked once, and what they look like.

use std::time::Duration;

use engine_builtin::{BuiltinError, Settings};
use hyper::Method;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::address::Address;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpSettings {
    #[serde(default = "default_port")]
    port: u16,
    #[serde(default = "default_host")]
    host: String,
    #[serde(default = "default_timeout", rename = "default_timeout", deserialize_with = "milliseconds")]
    pub(crate) timeout: Duration,
    #[serde(default = "default_limit", deserialize_with = "limit")]
    pub(crate) concurrency_request_limit: usize,
    #[serde(default)]
    pub(crate) cors: Option<CorsSettings>,
    #[serde(default)]
    middleware: Vec<MiddlewareSettings>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CorsSettings {
    #[serde(default)]
    pub(crate) allowed_origins: Vec<String>,
    #[serde(default, deserialize_with = "methods")]
    pub(crate) allowed_methods: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MiddlewareSettings {
    function_id: String,
    #[serde(default, rename = "phase")]
    _phase: Phase,
    #[serde(default)]
    priority: i64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    #[default]
    PreHandler,
}

impl HttpSettings {
    /// # Errors
    /// Names the key that does not fit, and its value.
    pub(crate) fn new(settings: Settings) -> Result<Self, BuiltinError> {
        let settings = if settings.is_null() { json!({}) } else { settings };
        serde_path_to_error::deserialize(settings).map_err(|error| BuiltinError::Settings(format!("iii-http: {error}")))
    }

    pub(crate) fn address(&self) -> Address {
        Address { host: self.host.clone(), port: self.port }
    }

    /// The functions that see every request, in their order.
    pub(crate) fn middleware(&self) -> Vec<String> {
        let mut ordered: Vec<&MiddlewareSettings> = self.middleware.iter().collect();
        ordered.sort_by_key(|middleware| middleware.priority);
        ordered.into_iter().map(|middleware| middleware.function_id.clone()).collect()
    }
}

fn default_port() -> u16 {
    3111
}

fn default_host() -> String {
    "0.0.0.0".into()
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_limit() -> usize {
    1024
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("`0` leaves a request no time; it is in milliseconds, at least 1")),
        // A year: what is longer is never reached, and must not overflow a clock.
        given => Ok(Duration::from_millis(given.min(365 * 24 * 60 * 60 * 1000))),
    }
}

/// 0 is taken as 1.
fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Ok(usize::deserialize(deserializer)?.clamp(1, Semaphore::MAX_PERMITS))
}

fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let given = Vec::<String>::deserialize(deserializer)?;
    match given.iter().find(|name| Method::from_bytes(name.as_bytes()).is_err()) {
        Some(bad) => Err(serde::de::Error::custom(format!("`{bad}` is no HTTP method"))),
        None => Ok(given),
    }
}

/// The JSON Schema of the worker's settings.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "port": {
                "type": "integer", "minimum": 0, "maximum": 65535, "default": 3111,
                "description": "TCP port to listen on; 0 takes any that is free. A change takes effect at once: the new \
                    address is bound first, and kept out of use if that fails."
            },
            "host": {
                "type": "string", "minLength": 1, "default": "0.0.0.0",
                "description": "Address to listen on. 127.0.0.1 serves this machine only."
            },
            "default_timeout": {
                "type": "integer", "minimum": 1, "default": 30000,
                "description": "How long a request may take to begin its answer, in milliseconds; then it is answered with 504."
            },
            "concurrency_request_limit": {
                "type": "integer", "minimum": 1, "default": 1024,
                "description": "How many requests are worked on at the same time; more wait for their turn."
            },
            "cors": {
                "type": ["object", "null"],
                "additionalProperties": false,
                "description": "Which web pages of other origins may call. Without this block all may.",
                "properties": {
                    "allowed_origins": {
                        "type": "array", "items": {"type": "string"}, "default": [],
                        "description": "Origins such as https://example.com. None, or *, allows all."
                    },
                    "allowed_methods": {
                        "type": "array", "items": {"type": "string"}, "default": [],
                        "description": "HTTP methods. None, or *, allows all."
                    }
                }
            },
            "middleware": {
                "type": "array",
                "default": [],
                "description": "Functions that are asked before every request that has a route; each lets it pass or answers it.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["function_id"],
                    "properties": {
                        "function_id": {"type": "string", "minLength": 1, "description": "Function to ask."},
                        "phase": {"type": "string", "enum": ["preHandler"], "default": "preHandler",
                            "description": "When it is asked."},
                        "priority": {"type": "integer", "default": 0, "description": "The lowest is asked first."}
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_means_the_documented_defaults() {
        let settings = HttpSettings::new(Value::Null).expect("defaults");
        assert_eq!(settings.address(), Address { host: "0.0.0.0".into(), port: 3111 });
        assert_eq!((settings.timeout, settings.concurrency_request_limit), (Duration::from_secs(30), 1024));
        assert!(settings.cors.is_none());
    }

    #[test]
    fn a_limit_of_nobody_is_one_and_middleware_is_ordered_by_priority() {
        let settings = json!({"concurrency_request_limit": 0, "middleware": [
            {"function_id": "late", "priority": 5}, {"function_id": "first", "priority": -1, "phase": "preHandler"},
            {"function_id": "a"}, {"function_id": "b"}]});
        let settings = HttpSettings::new(settings).expect("settings");
        assert_eq!(settings.concurrency_request_limit, 1);
        assert_eq!(settings.middleware(), ["first", "a", "b", "late"]);
    }

    #[test]
    fn a_bad_setting_is_named_with_its_value() {
        for (settings, words) in [
            (json!({"prot": 1}), ["prot", "unknown"]),
            (json!({"port": 70_000}), ["port", "70000"]),
            (json!({"host": 7}), ["host", "7"]),
            (json!({"default_timeout": 0}), ["default_timeout", "`0`"]),
            (json!({"cors": {"allowed_methods": ["GE T"]}}), ["cors.allowed_methods", "GE T"]),
            (json!({"middleware": [{"function_id": "f", "phase": "onError"}]}), ["middleware[0].phase", "onError"]),
        ] {
            let error = HttpSettings::new(settings).expect_err("a bad setting").to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn the_schema_knows_every_key_and_its_defaults_are_taken() {
        let schema = schema();
        let properties = schema["properties"].as_object().expect("properties");
        let defaults: serde_json::Map<String, Value> = properties
            .iter()
            .filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone())))
            .collect();
        assert_eq!(defaults.len(), 5);
        HttpSettings::new(Value::Object(defaults)).expect("the schema's defaults");
        HttpSettings::new(json!({"cors": null})).expect("no cors");
    }
}
