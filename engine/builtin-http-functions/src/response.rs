//! What a response means.

use engine_builtin::{Answer, ErrorBody, Raw};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Failure {
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: Value,
    #[serde(default)]
    message: Value,
}

/// The whole table of the contract.
pub(crate) fn answer(status: u16, body: &[u8]) -> Answer {
    match status {
        200..=299 if body.is_empty() => Ok(None),
        200..=299 => match json(body) {
            Some(result) => Ok(Some(result)),
            None => Err(ErrorBody::new("invalid_response", format!("the body of HTTP {status} is no JSON"))),
        },
        400.. => Err(failure(status, body)),
        _ => Ok(json(body)),
    }
}

fn json(body: &[u8]) -> Option<Raw> {
    serde_json::from_slice(body).ok()
}

fn failure(status: u16, body: &[u8]) -> ErrorBody {
    let text = |value: Value, otherwise: &str| match value {
        Value::String(text) => text,
        _ => otherwise.to_owned(),
    };
    match serde_json::from_slice::<Failure>(body) {
        Ok(Failure { error: ErrorObject { code, message } }) => {
            ErrorBody::new(text(code, "http_error"), text(message, "HTTP request failed"))
        }
        Err(_) => ErrorBody::new("http_error", format!("HTTP {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn gives(status: u16, body: &str, wanted: Result<Option<&str>, (&str, &str)>) {
        let answer = answer(status, body.as_bytes());
        let shown = match &answer {
            Ok(result) => Ok(result.as_ref().map(|result| result.get())),
            Err(error) => Err((error.code.as_str(), error.message.as_str())),
        };
        assert_eq!(shown, wanted, "{status} {body}");
    }

    #[test]
    fn success_is_the_json_of_the_body() {
        gives(200, "", Ok(None));
        gives(204, "", Ok(None));
        gives(201, r#" {"a": 1.50} "#, Ok(Some(r#"{"a": 1.50}"#)));
        gives(200, "null", Ok(Some("null")));
        gives(200, "<html>", Err(("invalid_response", "the body of HTTP 200 is no JSON")));
        gives(200, "{} {}", Err(("invalid_response", "the body of HTTP 200 is no JSON")));
    }

    #[test]
    fn a_redirect_is_a_success() {
        gives(302, r#"{"to":"b"}"#, Ok(Some(r#"{"to":"b"}"#)));
        gives(301, "moved", Ok(None));
        gives(101, "", Ok(None));
    }

    #[test]
    fn failures_keep_the_code_and_message_of_the_other_side() {
        gives(404, r#"{"error":{"code":"no_user","message":"who?"}}"#, Err(("no_user", "who?")));
        gives(500, r#"{"error":{"message":"broken"}}"#, Err(("http_error", "broken")));
        gives(500, r#"{"error":{"code":7}}"#, Err(("http_error", "HTTP request failed")));
        gives(503, r#"{"error":"broken"}"#, Err(("http_error", "HTTP 503")));
        gives(400, "", Err(("http_error", "HTTP 400")));
        gives(999, "[", Err(("http_error", "HTTP 999")));
    }

    proptest! {
        #[test]
        fn any_response_has_an_answer(status in 100u16..1000, body in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(answer(status, &body).is_err() && status < 400, (200..300).contains(&status)
                && !body.is_empty() && json(&body).is_none());
        }
    }
}
