//! Tells a handler who calls: `_caller_worker_id` goes into an object payload without taking the payload apart.

use std::borrow::Cow;

use serde_json::value::RawValue;

const KEY: &str = "_caller_worker_id";

/// `data` with the caller's id as its first key. What is no object stays as it is; a key of that name that the caller
/// supplied is replaced.
#[must_use]
pub fn with_caller(data: Box<RawValue>, caller: &str) -> Box<RawValue> {
    let text = data.get();
    let Some(inside) = text.strip_prefix('{') else { return data };
    // A key can be spelled with escapes; only then, or where it stands in plain sight, the object is taken apart.
    let inside = if text.contains(KEY) || text.contains("\\u") { without_key(text) } else { Cow::Borrowed(inside) };
    let comma = if inside.trim_start().starts_with('}') { "" } else { "," };
    let written = format!("{{\"{KEY}\":\"{caller}\"{comma}{inside}");
    RawValue::from_string(written).unwrap_or(data)
}

/// The object's members without the key, and the closing brace.
fn without_key(text: &str) -> Cow<'_, str> {
    let Ok(mut members) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) else {
        return Cow::Borrowed(&text[1..]);
    };
    members.remove(KEY);
    let written = serde_json::to_string(&members).unwrap_or_else(|_| "{}".into());
    Cow::Owned(written[1..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(data: &str, wanted: &str) {
        let data = RawValue::from_string(data.to_owned()).expect("JSON");
        assert_eq!(with_caller(data, "w").get(), wanted);
    }

    #[test]
    fn the_caller_goes_into_objects_only() {
        check(r#"{"a": 1}"#, r#"{"_caller_worker_id":"w","a": 1}"#);
        check("{ }", r#"{"_caller_worker_id":"w" }"#);
        check("[1]", "[1]");
        check("null", "null");
        check(r#"{"a":1,"_caller_worker_id":"me"}"#, r#"{"_caller_worker_id":"w","a":1}"#);
        check(r#"{"\u005fcaller_worker_id":"me"}"#, r#"{"_caller_worker_id":"w"}"#);
    }

    proptest! {
        /// Whatever the payload, the result is the payload with one key more.
        #[test]
        fn nothing_else_changes(keys in prop::collection::btree_map(".*", any::<i64>(), 0..8)) {
            let text = serde_json::to_string(&keys).expect("JSON");
            let spliced = with_caller(RawValue::from_string(text).expect("JSON"), "w");
            let mut object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(spliced.get()).expect("an object");
            prop_assert_eq!(object.remove(KEY), Some("w".into()));
            let wanted: serde_json::Map<String, serde_json::Value> = keys
                .into_iter().filter(|(key, _)| key != KEY).map(|(key, value)| (key, value.into())).collect();
            prop_assert_eq!(object, wanted);
        }
    }
}
