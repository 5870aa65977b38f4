//! The worker's settings.

use engine_builtin::{BuiltinError, Settings};
use globset::{GlobBuilder, GlobSetBuilder};
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
    block_private_ips: bool,
    require_https: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self { url_allowlist: Vec::new(), block_private_ips: true, require_https: true }
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
    let bad = |error: globset::Error| BuiltinError::Settings(format!("security.url_allowlist: {error}"));
    let mut allowed = GlobSetBuilder::new();
    for pattern in &security.url_allowlist {
        allowed.add(GlobBuilder::new(pattern).case_insensitive(true).build().map_err(bad)?);
    }
    Ok(Policy {
        allowed: allowed.build().map_err(bad)?,
        block_private: security.block_private_ips,
        require_https: security.require_https,
        lookup: system_lookup(),
    })
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
                "description": "Which URLs functions may have. Checked when a function is registered, and at each call.",
                "additionalProperties": false,
                "properties": {
                    "url_allowlist": {
                        "type": "array",
                        "items": { "type": "string" },
                        "default": ["*"],
                        "description": "Hosts that may be called, with `*` and `?`. An empty list allows every host."
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
            (json!({ "security": { "url_allowlist": ["[a"] } }), "[a"),
        ] {
            let error = policy(settings).err().expect("bad settings").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
