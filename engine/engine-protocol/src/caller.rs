//! Tells a handler who calls: `_caller_worker_id` goes into an object payload without taking the payload apart.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;
use serde_json::value::RawValue;

use crate::json::{expect, skip_space, skip_string, skip_value};
use crate::known::known;
use crate::members::without_member;
use crate::outbound::push_string;
use crate::payload::Payload;

const KEY: &str = "_caller_worker_id";

/// The payload begins like an object and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the payload is no JSON object, though it begins like one")]
pub struct BadPayload;

/// `data` with the caller's id as its first key. What is no object stays as it is; a key of that name that the caller
/// supplied is replaced.
///
/// # Errors
/// [`BadPayload`]: whether the caller supplied the key cannot be told.
pub fn with_caller(data: Payload, caller: &str) -> Result<Box<RawValue>, BadPayload> {
    let mut text = String::with_capacity(data.as_bytes().len() + KEY.len() + caller.len());
    let (data, from) = begin(&mut text, data, caller)?;
    text.push_str(data.text().get(from..).ok_or(BadPayload)?);
    known(text).ok_or(BadPayload)
}

/// Writes what [`with_caller`] begins with. What follows is the returned payload from the returned byte on, which is not
/// copied.
pub(crate) fn begin(into: &mut String, data: Payload, caller: &str) -> Result<(Payload, usize), BadPayload> {
    if !data.as_bytes().starts_with(b"{") {
        return Ok((data, 0));
    }
    let data = if data.may_name_caller() && may_hold_key(data.as_bytes()) {
        let inside = without_member(data.text(), KEY).ok_or(BadPayload)?;
        Payload::from(known(format!("{{{inside}}}")).ok_or(BadPayload)?)
    } else {
        data
    };
    let inside = data.as_bytes().strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}")).ok_or(BadPayload)?;
    into.push_str("{\"");
    into.push_str(KEY);
    into.push_str("\":");
    push_string(into, caller);
    if !inside.trim_ascii_start().is_empty() {
        into.push(',');
    }
    Ok((data, 1))
}

/// Over the `data` of a call, as over any value; and whether one of its members may tell of a caller.
pub(crate) fn skip_data(bytes: &[u8], start: usize) -> Option<(usize, bool)> {
    if bytes.get(start)? != &b'{' {
        return Some((skip_value(bytes, start)?, false));
    }
    let mut at = skip_space(bytes, start + 1);
    if bytes.get(at)? == &b'}' {
        return Some((at + 1, false));
    }
    let mut may_name_caller = false;
    loop {
        let behind = skip_string(bytes, at)?;
        // Without its quotes. With an escape it may mean anything.
        let name = bytes.get(at + 1..behind - 1)?;
        may_name_caller |= name == KEY.as_bytes() || memchr(b'\\', name).is_some();
        let value = skip_space(bytes, expect(bytes, skip_space(bytes, behind), b':')?);
        at = skip_space(bytes, skip_value(bytes, value)?);
        match bytes.get(at)? {
            b',' => at = skip_space(bytes, at + 1),
            b'}' => return Some((at + 1, may_name_caller)),
            _ => return None,
        }
    }
}

/// Without looking at the structure: the key's name is there somewhere, or an escape that may spell it.
fn may_hold_key(text: &[u8]) -> bool {
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\\u"));
    // Most texts have no escape of any kind, and one byte is found sooner than two.
    let escapes = memchr(b'\\', text).and_then(|at| text.get(at..));
    NAME.find(text).is_some() || escapes.is_some_and(|text| ESCAPE.find(text).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(json: &str, wanted: &str) {
        let data = RawValue::from_string(json.to_owned()).expect("JSON");
        assert_eq!(with_caller(data.into(), "w").expect("a payload").get(), wanted);
        // The same from a frame, where its members were looked at in passing.
        let (end, may_name_caller) = skip_data(json.as_bytes(), 0).expect("JSON");
        assert_eq!(end, json.len());
        let found = Payload::found(json, None, may_name_caller).expect("a payload");
        assert_eq!(with_caller(found, "w").expect("a payload").get(), wanted);
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

    /// What serde_json's own types cannot hold is no way to keep the forged key, and is passed on as it is.
    #[test]
    fn a_forged_caller_does_not_survive_odd_values() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for odd in [r#""\ud800""#, "1e999", &deep, "123456789012345678901234567890", "1.50", r#""\u00e4""#] {
            for forged in ["_caller_worker_id", r"\u005fcaller_worker_id", r"_caller_worker\u005Fid"] {
                check(
                    &format!(r#"{{"a":{odd},"{forged}":"me","b":{odd}}}"#),
                    &format!(r#"{{"_caller_worker_id":"w","a":{odd},"b":{odd}}}"#),
                );
            }
        }
    }

    proptest! {
        /// Whatever the payload, the result is the payload with one key more.
        #[test]
        fn nothing_else_changes(keys in prop::collection::btree_map(".*", any::<i64>(), 0..8)) {
            let text = serde_json::to_string(&keys).expect("JSON");
            let spliced = with_caller(RawValue::from_string(text).expect("JSON").into(), "w").expect("a payload");
            let mut object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(spliced.get()).expect("an object");
            prop_assert_eq!(object.remove(KEY), Some("w".into()));
            let wanted: serde_json::Map<String, serde_json::Value> = keys
                .into_iter().filter(|(key, _)| key != KEY).map(|(key, value)| (key, value.into())).collect();
            prop_assert_eq!(object, wanted);
        }
    }
}
