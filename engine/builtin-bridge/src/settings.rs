//! The worker's settings.

use std::collections::BTreeMap;
use std::time::Duration;

use engine_builtin::{BuiltinError, Settings};
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

const DEFAULT_URL: &str = "ws://0.0.0.0:49134";

/// Where the other engine is, and what goes over the bridge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bridged {
    pub(crate) url: String,
    /// Function of the other engine, by the id it has here.
    pub(crate) forward: BTreeMap<String, Forward>,
    /// Function of this engine, by the id it has there.
    pub(crate) expose: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) remote_function: String,
    pub(crate) timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Block {
    url: Option<String>,
    expose: Option<Vec<ExposeEntry>>,
    forward: Option<Vec<ForwardEntry>>,
    /// Of sample configurations; without effect.
    #[serde(rename = "service_id")]
    _service_id: Value,
    #[serde(rename = "service_name")]
    _service_name: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExposeEntry {
    local_function: String,
    remote_function: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardEntry {
    local_function: String,
    remote_function: String,
    timeout_ms: Option<u64>,
}

/// `taken` are ids that a forward cannot have; `engine_url` is what the environment says.
///
/// # Errors
/// Names the key and value that do not fit.
pub(crate) fn bridged(settings: Settings, engine_url: Option<String>, taken: &[&str]) -> Result<Bridged, BuiltinError> {
    let block: Option<Block> =
        serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    let block = block.unwrap_or_default();
    let given = |url: &String| !url.trim().is_empty();
    let url = block.url.filter(given).or(engine_url.filter(given)).unwrap_or_else(|| DEFAULT_URL.into());
    if !url.starts_with("ws://") {
        return Err(bad(format!("url: `{url}` does not begin with `ws://`; TLS is not supported here")));
    }
    let mut expose = BTreeMap::new();
    for (place, entry) in block.expose.unwrap_or_default().into_iter().enumerate() {
        let remote = entry.remote_function.unwrap_or_else(|| entry.local_function.clone());
        insert(&mut expose, remote, named(entry.local_function)?, &format!("expose[{place}].remote_function"))?;
    }
    let mut forward = BTreeMap::new();
    for (place, entry) in block.forward.unwrap_or_default().into_iter().enumerate() {
        if taken.contains(&entry.local_function.as_str()) {
            return Err(bad(format!(
                "forward[{place}].local_function: `{}` is the bridge's own",
                entry.local_function
            )));
        }
        if entry.timeout_ms == Some(0) {
            return Err(bad(format!("forward[{place}].timeout_ms: 0 is no time")));
        }
        let target = Forward {
            remote_function: named(entry.remote_function)?,
            timeout: entry.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis),
        };
        insert(&mut forward, entry.local_function, target, &format!("forward[{place}].local_function"))?;
    }
    Ok(Bridged { url, forward, expose })
}

fn bad(what: String) -> BuiltinError {
    BuiltinError::Settings(what)
}

fn named(id: String) -> Result<String, BuiltinError> {
    if id.trim().is_empty() { Err(bad(format!("`{id}` is no function's id"))) } else { Ok(id) }
}

fn insert<T>(map: &mut BTreeMap<String, T>, id: String, value: T, key: &str) -> Result<(), BuiltinError> {
    let id = named(id)?;
    match map.insert(id.clone(), value) {
        Some(_) => Err(bad(format!("{key}: `{id}` is there twice"))),
        None => Ok(()),
    }
}

/// What the settings look like.
#[must_use]
pub fn schema() -> Value {
    let id = |description: &str| json!({ "type": "string", "minLength": 1, "description": description });
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "url": {
                "type": "string",
                "default": DEFAULT_URL,
                "description": "Where the other engine listens for workers. Without it the environment's `III_URL` counts."
            },
            "expose": {
                "type": "array",
                "default": [],
                "description": "Functions of this engine that the other one may call.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["local_function"],
                    "properties": {
                        "local_function": id("Its id here."),
                        "remote_function": id("Its id there; the same, unless given.")
                    }
                }
            },
            "forward": {
                "type": "array",
                "default": [],
                "description": "Functions of the other engine that can be called here.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["local_function", "remote_function"],
                    "properties": {
                        "local_function": id("Its id here."),
                        "remote_function": id("Its id there."),
                        "timeout_ms": { "type": "integer", "minimum": 1, "default": 30_000, "description": "How long an answer may take." }
                    }
                }
            },
            "service_id": { "description": "Without effect." },
            "service_name": { "description": "Without effect." }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_the_settings_or_the_environments_or_the_default() {
        let url = |settings: Value, environment: Option<&str>| {
            bridged(settings, environment.map(str::to_owned), &[]).expect("settings").url
        };
        assert_eq!(url(json!({ "url": "ws://a:1" }), Some("ws://b:2")), "ws://a:1");
        assert_eq!(url(json!({ "url": "" }), Some("ws://b:2")), "ws://b:2");
        assert_eq!(url(Value::Null, None), DEFAULT_URL);
    }

    #[test]
    fn functions_have_the_same_id_on_both_sides_unless_told_otherwise() {
        let settings = json!({
            "service_id": "x", "service_name": null,
            "expose": [{ "local_function": "a" }, { "local_function": "b", "remote_function": "far::b" }],
            "forward": [{ "local_function": "c", "remote_function": "far::c", "timeout_ms": 5 }],
        });
        let bridged = bridged(settings, None, &[]).expect("settings");
        let expose: Vec<_> = bridged.expose.iter().map(|(there, here)| (there.as_str(), here.as_str())).collect();
        assert_eq!(expose, [("a", "a"), ("far::b", "b")]);
        let wanted = Forward { remote_function: "far::c".into(), timeout: Duration::from_millis(5) };
        assert_eq!(bridged.forward["c"], wanted);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let entry = |local: &str| json!({ "local_function": local, "remote_function": "r" });
        for (settings, why) in [
            (json!({ "uri": "ws://a" }), "`uri`"),
            (json!({ "url": "wss://a" }), "`wss://a`"),
            (json!({ "expose": [{ "remote_function": "a" }] }), "local_function"),
            (json!({ "forward": [entry("a"), entry("a")] }), "forward[1].local_function: `a`"),
            (json!({ "forward": [entry("own")] }), "`own`"),
            (json!({ "forward": [entry(" ")] }), "` `"),
            (json!({ "forward": [{ "local_function": "a", "remote_function": "b", "timeout_ms": 0 }] }), "timeout_ms"),
            (
                json!({ "expose": [{ "local_function": "a" }, { "local_function": "b", "remote_function": "a" }] }),
                "`a`",
            ),
        ] {
            let error = bridged(settings, None, &["own"]).expect_err("bad settings").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
