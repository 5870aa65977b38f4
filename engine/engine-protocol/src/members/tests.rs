//! Objects with and without the key, and everything that is no object.

use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::*;

const KEY: &str = "_id";

fn check(object: &str, inside: &str) {
    assert_eq!(without_member(object, KEY).as_deref(), Some(inside), "{object}");
}

#[test]
fn other_members_stay_to_the_letter() {
    check("{}", "");
    check("{ }", " ");
    check(r#"{"a" : 1.50 , "b":[ 1e999,{"_id":2}] }"#, r#""a" : 1.50 , "b":[ 1e999,{"_id":2}] "#);
    check(r#"{"_id":1}"#, "");
    check(r#"{"_id":1,"a":2}"#, r#""a":2"#);
    check(r#"{"a":2,"_id":1}"#, r#""a":2"#);
    check(r#"{"a":2, "_id":[1,"]}",{"x":"\""}] ,"_id":2,"b":3}"#, r#""a":2,"b":3"#);
    check(
        r#"{"a":"\ud800","_id":1,"a":123456789012345678901234567890}"#,
        r#""a":"\ud800","a":123456789012345678901234567890"#,
    );
    check(r#"{"_ID":1,"_id2":2,"_i":3,"":4,"\\_id":5}"#, r#""_ID":1,"_id2":2,"_i":3,"":4,"\\_id":5"#);
}

#[test]
fn escapes_do_not_hide_the_key() {
    for key in [r"\u005fid", r"_\u0069\u0064", r"\u005Fid", r"\u005f\u0069d"] {
        check(&format!(r#"{{"{key}":1}}"#), "");
        check(&format!(r#"{{"a":1,"{key}" : {{"b":[]}} , "c":1}}"#), r#""a":1, "c":1"#);
    }
    check(r#"{"\\u005fid":1,"\u015fid":2,"\u005fi\u00e4":3}"#, r#""\\u005fid":1,"\u015fid":2,"\u005fi\u00e4":3"#);
}

#[test]
fn nesting_has_no_limit() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    check(&format!(r#"{{"a":{deep},"_id":{deep}}}"#), &format!(r#""a":{deep}"#));
}

#[test]
fn what_is_no_object_has_no_members() {
    for text in [
        "",
        "{",
        "}",
        "[]",
        "{}x",
        "{}{}",
        " {}",
        "{a:1}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1"#,
        r#"{"a":1,}"#,
        r#"{,}"#,
        r#"{"a":"}"#,
        r#"{"a":"\"}"#,
        r#"{"a":]}"#,
        r#"{"a\"#,
        r#"{"a":1}}"#,
        "{\"",
    ] {
        assert_eq!(without_member(text, KEY), None, "{text}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..4).prop_map(|members| Map::from_iter(members).into()),
        ]
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(KEY.to_owned()), ".*", r#"[\[\]{},:"\\u_id ]{0,6}"#]
}

/// A string as JSON, with some of its characters as `\u` escapes.
fn spelled(text: &str, escape: u32) -> String {
    let mut written = String::from("\"");
    for (at, unit) in text.encode_utf16().enumerate() {
        match char::from_u32(unit.into()) {
            Some(plain) if escape >> (at % 32) & 1 == 0 && (' '..='~').contains(&plain) && !"\"\\".contains(plain) => {
                written.push(plain);
            }
            _ => written += &format!("\\u{unit:04x}"),
        }
    }
    written + "\""
}

proptest! {
    /// As if the object had been parsed, the key removed, and the object written again.
    #[test]
    fn as_a_parser_would(
        members in prop::collection::vec((text(), any::<u32>(), value(), any::<bool>()), 0..6),
        space in "[ \t\r\n]{0,2}",
    ) {
        let written: Vec<String> = members.iter().map(|(key, escape, value, pretty)| {
            let value = if *pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
            format!("{space}{}{space}:{space}{}{space}", spelled(key, *escape), value.expect("JSON"))
        }).collect();
        let object = format!("{{{}}}", written.join(","));
        let mut wanted: Map<String, Value> = serde_json::from_str(&object).expect("an object");
        wanted.remove(KEY);
        let inside = without_member(&object, KEY).expect("an object");
        let left: Map<String, Value> = serde_json::from_str(&format!("{{{inside}}}")).expect("an object");
        prop_assert_eq!(left, wanted);
    }

    /// Nothing makes it panic, and nothing that a payload can be is refused.
    #[test]
    fn any_text_is_taken(text in prop_oneof![r#"\{[\[\]{},:"\\u_id0-9 ä]{0,40}"#, ".*"]) {
        let inside = without_member(&text, KEY);
        if text.starts_with('{') && serde_json::from_str::<&RawValue>(&text).is_ok_and(|raw| raw.get() == text) {
            let object = format!("{{{}}}", inside.expect("an object has members"));
            prop_assert!(serde_json::from_str::<&RawValue>(&object).is_ok(), "{object}");
        }
    }
}
