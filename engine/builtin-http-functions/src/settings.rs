//! The worker's settings.

use engine_builtin::{BuiltinError, Settings};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::policy::{Policy, system_lookup};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Block {
    security: Option<Security>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Security {
    url_allowlist: Vec<String>,
    env_allowlist: Vec<String>,
    block_private_ips: bool,
    require_https: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            url_allowlist: Vec::new(),
            env_allowlist: vec!["*".into()],
            block_private_ips: true,
            require_https: true,
        }
    }
}

/// # Errors
/// Names the key and value that do not fit.
pub(crate) fn policy(settings: Settings) -> Result<Policy, BuiltinError> {
    let block: Option<Block> =
        serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    let mut security = block.unwrap_or_default().security.unwrap_or_default();
    if security.url_allowlist.is_empty() {
        security.url_allowlist.push("*".into());
    }
    Ok(Policy {
        // Hosts have no case; names of variables have.
        allowed: globs("url_allowlist", &security.url_allowlist, true)?,
        variables: globs("env_allowlist", &security.env_allowlist, false)?,
        block_private: security.block_private_ips,
        require_https: security.require_https,
        lookup: system_lookup(),
    })
}

fn globs(setting: &str, patterns: &[String], ignores_case: bool) -> Result<GlobSet, BuiltinError> {
    let bad = |error: globset::Error| BuiltinError::Settings(format!("security.{setting}: {error}"));
    let mut globs = GlobSetBuilder::new();
    for pattern in patterns {
        globs.add(GlobBuilder::new(pattern).case_insensitive(ignores_case).build().map_err(bad)?);
    }
    globs.build().map_err(bad)
}

/// What the settings look like.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "security": {
                "type": "object",
                "description": "Which URLs functions may have, and which secrets. Checked when a function is registered; its URL at each call, too.",
                "additionalProperties": false,
                "properties": {
                    "url_allowlist": {
                        "type": "array",
                        "items": { "type": "string" },
                        "default": ["*"],
                        "description": "Hosts that may be called, with `*` and `?`. An empty list allows every host."
                    },
                    "env_allowlist": {
                        "type": "array",
                        "items": { "type": "string" },
                        "default": ["*"],
                        "description": "Environment variables of the engine that `auth` may name, with `*` and `?`; case matters. By default every variable can be read by whoever registers a function, who has it sent to a URL of their own: list what is meant for that. An empty list allows none."
                    },
                    "block_private_ips": {
                        "type": "boolean",
                        "default": true,
                        "description": "Refuses addresses that are not the public internet's, also those a name turns out to have."
                    },
                    "require_https": { "type": "boolean", "default": true, "description": "Refuses `http:` URLs." }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_forbidden_that_is_not_allowed_by_default() {
        let policy = policy(Value::Null).expect("settings");
        assert!(policy.block_private && policy.require_https && policy.allowed.is_match("any.host"));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (settings, why) in [
            (json!({ "secruity": {} }), "secruity"),
            (json!({ "security": { "require_https": "maybe" } }), "maybe"),
            (json!({ "security": { "url_allowlist": ["[a"] } }), "url_allowlist"),
            (json!({ "security": { "env_allowlist": ["[a"] } }), "env_allowlist"),
            (json!({ "security": { "env_allowlist": "A" } }), "\"A\""),
        ] {
            let error = policy(settings).err().expect("bad settings").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
