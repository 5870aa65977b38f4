//! A function's return value as an HTTP answer.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use engine_builtin::Raw;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::headers;
use crate::refusal::Refusal;
use crate::response::ResponseBody;

/// What an answer is made of. Of a member that is there twice the last counts, as in most parsers.
#[derive(Default)]
struct Returned<'a> {
    status_code: Option<&'a RawValue>,
    headers: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
}

/// `function_id` is named if its answer cannot be sent.
pub(crate) fn read(function_id: &str, method: &Method, value: &Raw) -> Result<Response<ResponseBody>, Refusal> {
    let bad = |why: String| Refusal::Internal(format!("`{function_id}` returned what cannot be answered: {why}"));
    let returned: Returned<'_> = if value.get().starts_with('{') {
        serde_json::from_str(value.get()).map_err(|error| bad(error.to_string()))?
    } else {
        Returned::default()
    };
    let status = match returned.status_code.map(RawValue::get) {
        None | Some("null") => StatusCode::OK,
        Some(text) => status(text).ok_or_else(|| bad(format!("status_code {text:.32} is none of 200 to 599")))?,
    };
    let mut headers = HeaderMap::new();
    if let Some(given) = returned.headers {
        headers::set(&mut headers, given);
    }
    let mut body = encode(returned.body, &mut headers);
    if *method == Method::HEAD && headers.contains_key(CONTENT_LENGTH) {
        // What a GET would have: only the handler knows.
        body = Bytes::new();
    }
    headers::settle_length(&mut headers, method);
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        body = Bytes::new();
    }
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A number, written `404`, or `404.0` as some languages do. Those below 200 end no request.
pub(crate) fn status(text: &str) -> Option<StatusCode> {
    let text = text.strip_suffix(".0").unwrap_or(text);
    text.parse().ok().filter(|code| (200..600).contains(code)).and_then(|code| StatusCode::from_u16(code).ok())
}

/// Text goes out as it is where the function has said what it is; else everything is JSON.
fn encode(body: Option<&RawValue>, headers: &mut HeaderMap) -> Bytes {
    let json = body.map_or("{}", RawValue::get);
    if !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, headers::JSON);
        return Bytes::copy_from_slice(json.as_bytes());
    }
    match json.as_bytes().first() {
        // A string that cannot be decoded has half a surrogate pair, and goes as JSON.
        Some(b'"') => serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned()).into(),
        _ if json == "null" => Bytes::new(),
        _ => Bytes::copy_from_slice(json.as_bytes()),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Returned<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Returned<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Returned<'de>, A::Error> {
                let mut returned = Returned::default();
                while let Some(name) = members.next_key::<Cow<'de, str>>()? {
                    match name.as_ref() {
                        "status_code" => returned.status_code = Some(members.next_value()?),
                        "headers" => returned.headers = Some(members.next_value()?),
                        "body" => returned.body = Some(members.next_value()?),
                        _ => drop(members.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(returned)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn read_as(method: Method, value: Value) -> Result<(u16, Vec<String>, String), Refusal> {
        let value = serde_json::value::to_raw_value(&value).expect("JSON");
        let response = read("f", &method, &value)?;
        let status = response.status().as_u16();
        let lines = response.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")));
        let lines = lines.collect();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        Ok((status, lines, String::from_utf8(body.to_vec()).expect("text")))
    }

    async fn check(value: Value, status: u16, lines: &[&str], body: &str) {
        let seen = read_as(Method::GET, value).await.expect("an answer");
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(seen, (status, lines, body.to_owned()));
    }

    const JSON_TYPE: &str = "content-type: application/json";

    #[tokio::test]
    async fn without_a_content_type_the_body_is_json() {
        check(json!({}), 200, &[JSON_TYPE], "{}").await;
        check(json!({"status_code": 201, "body": {"a": [1.5]}}), 201, &[JSON_TYPE], r#"{"a":[1.5]}"#).await;
        check(json!({"status_code": null, "body": "text"}), 200, &[JSON_TYPE], r#""text""#).await;
        check(json!({"body": null}), 200, &[JSON_TYPE], "null").await;
        check(json!({"headers": {"x-a": "1"}, "other": {"body": 1}}), 200, &["x-a: 1", JSON_TYPE], "{}").await;
        check(json!({"status_code": 204, "body": {}}), 204, &[JSON_TYPE], "").await;
    }

    #[tokio::test]
    async fn with_a_content_type_text_goes_out_as_it_is() {
        let html = json!({"Content-Type": "text/html"});
        check(json!({"headers": html, "body": "<p>\u{e9}\n"}), 200, &["content-type: text/html"], "<p>\u{e9}\n").await;
        check(json!({"headers": html, "body": null}), 200, &["content-type: text/html"], "").await;
        check(json!({"headers": ["content-type: a/b"], "body": [1]}), 200, &["content-type: a/b"], "[1]").await;
    }

    #[tokio::test]
    async fn a_value_without_these_members_is_an_empty_success() {
        for value in [json!("text"), json!([404]), json!(7), json!(false), json!({"statusCode": 404})] {
            check(value, 200, &[JSON_TYPE], "{}").await;
        }
    }

    #[tokio::test]
    async fn a_status_that_cannot_be_sent_is_an_error_that_names_the_function() {
        for bad in [json!(99), json!(101), json!(600), json!(-1), json!("404"), json!(200.5), json!({}), json!(true)] {
            let refused = read_as(Method::GET, json!({"status_code": bad})).await.expect_err("a bad status");
            assert!(refused.to_string().contains("`f`") && refused.to_string().contains("status_code"), "{refused}");
        }
        check(json!({"status_code": 404.0}), 404, &[JSON_TYPE], "{}").await;
    }

    #[tokio::test]
    async fn a_length_is_ours_except_where_there_is_no_body_to_measure() {
        let value = json!({"headers": {"content-length": "999"}, "body": {}});
        check(value.clone(), 200, &[JSON_TYPE], "{}").await;
        let (_, lines, body) = read_as(Method::HEAD, value).await.expect("an answer");
        assert_eq!((lines, body.as_str()), (vec!["content-length: 999".to_owned(), JSON_TYPE.into()], ""));
    }

    #[test]
    fn of_two_members_the_last_counts() {
        let value = RawValue::from_string(r#"{"status_code":500,"status_code":202,"body":1,"b\u006fdy":2}"#.into());
        let response = read("f", &Method::GET, &value.expect("JSON")).expect("an answer");
        assert_eq!(response.status(), 202);
    }
}
