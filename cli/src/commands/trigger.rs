//! `iii trigger`: one call, its result as JSON.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::arguments::Trigger;
use crate::clean::clean;
use crate::commands::trigger_help;
use crate::connection::Connection;
use crate::failure::Failure;

pub(crate) async fn run(arguments: Trigger) -> Outcome {
    if arguments.help {
        return trigger_help::run(&arguments).await;
    }
    let Some(function) = &arguments.function_path else {
        return Err(Failure::new("missing FUNCTION_PATH: which function is to be called?")
            .hint("`iii trigger engine::functions::list` shows those there are"));
    };
    let payload = payload(arguments.json.as_deref(), &arguments.kv)?;
    let patience = Duration::from_millis(arguments.timeout_ms);
    let start = Instant::now();
    let connection = Connection::open_within(&arguments.address, patience).await?;
    let left = patience.saturating_sub(start.elapsed());
    let result = connection.client().call(function, &payload, left).await;
    connection.close().await;
    match result {
        Ok(None) => Ok(0),
        Ok(Some(result)) => {
            print_result(result.get());
            Ok(0)
        }
        Err(error) => {
            let failure = Failure::from(error);
            let Some(body) = failure.body() else { return Err(failure) };
            let object = json!({ "code": body.code, "message": body.message, "stacktrace": body.stacktrace });
            // JSON escapes control characters; the rest could still turn a terminal's text around.
            eprintln!("Error: {}", clean(&format!("{object:#}")));
            Ok(1)
        }
    }
}

/// Nothing for `null`. A value that is nested too deeply for us is printed as it came.
fn print_result(result: &str) {
    match serde_json::from_str::<Value>(result) {
        Ok(Value::Null) => {}
        Ok(result) => println!("{result:#}"),
        Err(_) => println!("{result}"),
    }
}

/// `--json`, with `key=value` fields over it.
fn payload(json: Option<&str>, fields: &[String]) -> Result<Value, Failure> {
    let base = match json {
        None => Value::Object(Map::new()),
        Some(text) => {
            serde_json::from_str(text).map_err(|error| Failure::new(format!("--json: invalid JSON: {error}")))?
        }
    };
    if fields.is_empty() {
        return Ok(base);
    }
    let Value::Object(mut payload) = base else {
        return Err(Failure::new("--json must be an object when key=value fields are given too"));
    };
    for field in fields {
        match field.split_once('=') {
            None => return Err(Failure::new(format!("expected key=value, got `{}`", clean(field)))),
            Some(("", _)) => return Err(Failure::new(format!("empty key in `{}`", clean(field)))),
            Some((key, value)) => {
                let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
                payload.insert(key.to_owned(), value);
            }
        }
    }
    Ok(Value::Object(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(json: Option<&str>, fields: &[&str]) -> Option<Value> {
        payload(json, &fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn fields_are_json_where_they_can_be_and_text_where_not() {
        let fields = ["n=3", "ok=true", "tags=[\"a\",\"b\"]", "x=null", "s=\"7\"", "t=A-17", "e=a=b", "n=4", "z="];
        let expected =
            json!({ "n": 4, "ok": true, "tags": ["a", "b"], "x": null, "s": "7", "t": "A-17", "e": "a=b", "z": "" });
        assert_eq!(built(None, &fields), Some(expected));
        assert_eq!(built(None, &[]), Some(json!({})));
        assert_eq!(built(Some("[1]"), &[]), Some(json!([1])));
        assert_eq!(built(Some("{\"a\":1,\"b\":2}"), &["b=3"]), Some(json!({ "a": 1, "b": 3 })));
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        for (json, fields) in [(Some("{"), &[][..]), (Some("[1]"), &["a=1"]), (None, &["a"]), (None, &["=1"])] {
            assert_eq!(built(json, fields), None, "{json:?} {fields:?}");
        }
    }
}
