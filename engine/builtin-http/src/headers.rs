//! Header fields that a worker sets on its answer.

use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{HeaderMap, Method};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::debug;

/// An answer's fields beyond these are left out.
const MAX_FIELDS: usize = 512;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Takes over what a worker has set: an object, or an array of `Name: value`. What is no field is left out.
pub(crate) fn set(headers: &mut HeaderMap, given: &RawValue) {
    match serde_json::from_str::<Value>(given.get()) {
        Ok(Value::Object(fields)) => {
            for (name, value) in fields {
                set_field(headers, &name, &value);
            }
        }
        Ok(Value::Array(lines)) => {
            for line in lines.iter().filter_map(Value::as_str) {
                match line.split_once(':') {
                    Some((name, value)) => append(headers, name.trim(), value.trim()),
                    None => debug!(line, "a line of an answer's headers has no colon"),
                }
            }
        }
        _ => debug!("an answer's headers are neither an object nor an array"),
    }
}

fn set_field(headers: &mut HeaderMap, name: &str, value: &Value) {
    if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
        headers.remove(name);
    }
    match value {
        Value::String(text) => append(headers, name, text),
        Value::Number(number) => append(headers, name, &number.to_string()),
        // Several of one name: cookies.
        Value::Array(values) => values.iter().filter_map(Value::as_str).for_each(|text| append(headers, name, text)),
        Value::Null | Value::Bool(_) | Value::Object(_) => debug!(name, "an answer's header is no text"),
    }
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) {
    let field = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
    let (Ok(field_name), Ok(field_value)) = field else {
        debug!(name, "an answer's header cannot be sent");
        return;
    };
    if headers.len() < MAX_FIELDS && !is_framing(&field_name) {
        headers.append(field_name, field_value);
    }
}

/// How a message travels is between the two ends of a connection; a worker is neither.
fn is_framing(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name) || matches!(name.as_str(), "keep-alive" | "trailer" | "te")
}

/// A length must be the only one, and a number.
pub(crate) fn keep_usable_length(headers: &mut HeaderMap) {
    let usable = {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let first = lengths.next().and_then(|value| value.to_str().ok()).map(str::parse::<u64>);
        matches!(first, Some(Ok(_))) && lengths.next().is_none()
    };
    if !usable {
        headers.remove(CONTENT_LENGTH);
    }
}

/// The length of a body that is known is counted, not told; of a HEAD's, which is not sent, it is what a GET's would be.
pub(crate) fn settle_length(headers: &mut HeaderMap, method: &Method) {
    if *method == Method::HEAD {
        keep_usable_length(headers);
    } else {
        headers.remove(CONTENT_LENGTH);
    }
}

/// The methods of a path. OPTIONS is always answered, and HEAD where GET is.
pub(crate) fn allow(methods: &[Method]) -> HeaderValue {
    let mut names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    for (implied, by) in [("HEAD", Some("GET")), ("OPTIONS", None)] {
        if !names.contains(&implied) && by.is_none_or(|by| names.contains(&by)) {
            names.push(implied);
        }
    }
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static("OPTIONS"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(given: Value, expected: &[(&str, &str)]) {
        let given = serde_json::value::to_raw_value(&given).expect("JSON");
        let mut headers = HeaderMap::new();
        set(&mut headers, &given);
        let seen: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_object_and_an_array_are_taken_and_what_is_no_field_is_left_out() {
        check(json!({"X-A": "1", "x b": "2", "x-c": "a\nb", "x-d": 5, "x-e": true}), &[("x-a", "1"), ("x-d", "5")]);
        check(json!(["X-A: 1:2", "nonsense", 7, ": x"]), &[("x-a", "1:2")]);
        check(json!({"set-cookie": ["a=1", "b=2"]}), &[("set-cookie", "a=1"), ("set-cookie", "b=2")]);
        check(json!(["set-cookie: a=1", "set-cookie: b=2"]), &[("set-cookie", "a=1"), ("set-cookie", "b=2")]);
        check(json!("x-a: 1"), &[]);
    }

    #[test]
    fn a_worker_does_not_decide_how_messages_are_framed() {
        check(json!({"Transfer-Encoding": "chunked", "connection": "close", "upgrade": "h2c"}), &[]);
        for (lengths, kept) in [(&["5"][..], true), (&["5", "5"], false), (&["-1"], false), (&["x"], false)] {
            let mut headers = HeaderMap::new();
            for length in lengths {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            keep_usable_length(&mut headers);
            assert_eq!(headers.contains_key(CONTENT_LENGTH), kept, "{lengths:?}");
        }
    }

    #[test]
    fn fields_are_bounded() {
        let many: Vec<String> = (0..100_000).map(|number| format!("x-{number}: 1")).collect();
        let mut headers = HeaderMap::new();
        set(&mut headers, &serde_json::value::to_raw_value(&many).expect("JSON"));
        assert_eq!(headers.len(), MAX_FIELDS);
    }
}
