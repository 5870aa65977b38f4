//! One entry, and the variables in its value.

use std::borrow::Cow;
use std::convert::Infallible;

use engine_builtin::ErrorBody;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::placeholder::{Placeholder, replace_placeholders};

/// Longest entry, as JSON.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

/// What is stored under an id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub schema: Value,
    /// As it was written: variables are not expanded.
    #[serde(default)]
    pub value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl Entry {
    /// Everything but the value.
    pub(crate) fn summary(&self) -> Value {
        let mut summary = json!({
            "id": self.id, "name": self.name, "description": self.description, "schema": self.schema,
        });
        if let Some(metadata) = &self.metadata {
            summary["metadata"] = metadata.clone();
        }
        summary
    }
}

/// # Errors
/// `INVALID_ID`.
pub(crate) fn check_id(id: &str) -> Result<(), ErrorBody> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&id.len()) && id.bytes().all(fits) {
        return Ok(());
    }
    let shown: String = id.chars().take(80).collect();
    Err(ErrorBody::new("INVALID_ID", format!("id `{shown}` is not 1 to 64 of a-z, 0-9, `_` and `-`")))
}

/// A value with `${NAME}` and `${NAME:default}` in its texts replaced. A variable that is not set and has no default
/// stays as it is written.
pub(crate) fn expand(value: &Value, variable: &impl Fn(&str) -> Option<String>) -> Value {
    match value {
        Value::String(text) => Value::String(expand_text(text, variable)),
        Value::Array(items) => Value::Array(items.iter().map(|item| expand(item, variable)).collect()),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, field)| (key.clone(), expand(field, variable)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn expand_text(text: &str, variable: &impl Fn(&str) -> Option<String>) -> String {
    let Ok(expanded) = replace_placeholders::<Infallible>(text, |Placeholder { written, name, default, .. }| {
        Ok(variable(name).map_or(Cow::Borrowed(default.unwrap_or(written)), Cow::Owned))
    });
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_plain() {
        for id in ["a", "iii-http", "a_b-9", &"x".repeat(64)] {
            check_id(id).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
        for id in ["", "A", "a/b", "..", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(check_id(id).expect_err(id).code, "INVALID_ID");
        }
    }

    #[test]
    fn variables_are_expanded_wherever_there_is_text() {
        let variable = |name: &str| (name == "SET").then(|| "value".to_owned());
        let value = json!({ "a": ["${SET}", "${SET:x}-${NO:d:e}", 1], "b": "${NO}", "c": "${", "${SET}": null });
        let wanted = json!({ "a": ["value", "value-d:e", 1], "b": "${NO}", "c": "${", "${SET}": null });
        assert_eq!(expand(&value, &variable), wanted);
    }
}
