//! Names that callers choose: parts of keys and of tables.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Longest name of a scope, key, stream, group, item or topic.
pub const MAX_NAME_BYTES: usize = 1024;

/// A name in a payload, for `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is no string, or longer than [`MAX_NAME_BYTES`].
pub fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match name.len() {
        0..=MAX_NAME_BYTES => Ok(name),
        bytes => Err(D::Error::custom(format!("a name of {bytes} bytes; the limit is {MAX_NAME_BYTES}"))),
    }
}

/// As [`name`], where it may be missing; with `#[serde(default)]`.
///
/// # Errors
/// As [`name`].
pub fn optional_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Name(#[serde(deserialize_with = "name")] String);
    Ok(Option::<Name>::deserialize(deserializer)?.map(|Name(name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Names {
        #[serde(deserialize_with = "name")]
        topic: String,
        #[serde(default, deserialize_with = "optional_name")]
        id: Option<String>,
    }

    #[test]
    fn a_name_has_a_longest_length() {
        let parse = |topic: usize, id: usize| {
            let (topic, id) = ("t".repeat(topic), "i".repeat(id));
            serde_json::from_value::<Names>(serde_json::json!({ "topic": topic, "id": id }))
        };
        let names = parse(MAX_NAME_BYTES, MAX_NAME_BYTES).expect("names");
        assert_eq!((names.topic.len(), names.id.map(|id| id.len())), (MAX_NAME_BYTES, Some(MAX_NAME_BYTES)));
        assert!(parse(MAX_NAME_BYTES + 1, 0).is_err() && parse(0, MAX_NAME_BYTES + 1).is_err());
        for missing in [r#"{"topic":"t"}"#, r#"{"topic":"t","id":null}"#] {
            assert!(serde_json::from_str::<Names>(missing).expect("names").id.is_none(), "{missing}");
        }
    }
}
