//! The worker's settings.

use engine_builtin::{BuiltinError, Settings};
use serde::Deserialize;
use serde_json::{Value, json};

/// What is to run, and what restarts it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    pub(crate) exec: Vec<String>,
    #[serde(default)]
    pub(crate) watch: Option<Vec<String>>,
}

/// # Errors
/// Names the key and value that do not fit.
pub(crate) fn wanted(settings: Settings) -> Result<Wanted, BuiltinError> {
    if settings.is_null() {
        return Err(BuiltinError::Settings("`exec` is missing: a list of shell commands".into()));
    }
    let wanted: Wanted = serde_json::from_value(settings).map_err(|error| BuiltinError::Settings(error.to_string()))?;
    if wanted.exec.is_empty() {
        return Err(BuiltinError::Settings("`exec` has no command".into()));
    }
    if let Some(place) = wanted.exec.iter().position(|command| command.trim().is_empty() || command.contains('\0')) {
        return Err(BuiltinError::Settings(format!("exec[{place}]: {:?} is no command", wanted.exec[place])));
    }
    Ok(wanted)
}

/// What the settings look like.
#[must_use]
pub fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["exec"],
        "properties": {
            "exec": {
                "type": "array",
                "minItems": 1,
                "items": { "type": "string", "minLength": 1 },
                "description": "Shell commands, one after another. All but the last must succeed; the last one stays."
            },
            "watch": {
                "type": ["array", "null"],
                "items": { "type": "string" },
                "default": [],
                "description": "Files, with `*`, `?`, `**` and `{a,b}`, whose changes restart all commands."
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named() {
        for (settings, why) in [
            (Value::Null, "`exec` is missing"),
            (json!({}), "missing field `exec`"),
            (json!({ "exec": [] }), "no command"),
            (json!({ "exec": ["make", " "] }), "exec[1]"),
            (json!({ "exec": "make" }), "\"make\""),
            (json!({ "exec": ["make"], "wacth": [] }), "`wacth`"),
        ] {
            let error = wanted(settings).expect_err("bad settings").to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(wanted(json!({ "exec": ["make"], "watch": null })).is_ok());
    }
}
