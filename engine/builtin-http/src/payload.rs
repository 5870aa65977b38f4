//! What a handler and a middleware are given: a request as JSON, written once, without a tree in between.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use engine_builtin::{ChannelRef, Raw};
use hyper::header::{CONTENT_TYPE, COOKIE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::route::Route;

/// Largest JSON body that is parsed for a handler. Larger ones are answered with 413; other types are streamed, and
/// have no limit.
pub const MAX_JSON_BYTES: usize = 10 * 1024 * 1024;

/// How deep a JSON body may be nested. Parsers commonly stop at 128, and a worker's sees it inside a message.
const MAX_NESTING: u8 = 120;

/// A request, apart from its body.
pub(crate) struct Asked<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) route: &'a Route,
    /// In the order of the route's names.
    pub(crate) parameters: &'a [Cow<'a, str>],
}

#[derive(Serialize)]
struct HandlerPayload<'a> {
    path_params: PathParameters<'a>,
    query_params: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    headers: Headers<'a>,
    path: &'a str,
    method: &'a str,
    body: Option<&'a RawValue>,
    trigger: TriggerPart<'a>,
    request_body: &'a ChannelRef,
    response: &'a ChannelRef,
}

#[derive(Serialize)]
struct TriggerPart<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    path: &'a str,
    method: &'a str,
}

#[derive(Serialize)]
struct MiddlewarePayload<'a> {
    phase: &'static str,
    request: RequestPart<'a>,
    context: Empty,
}

#[derive(Serialize)]
struct RequestPart<'a> {
    path_params: PathParameters<'a>,
    query_params: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    headers: Headers<'a>,
    method: &'a str,
}

#[derive(Serialize)]
struct Empty {}

struct PathParameters<'a>(&'a Asked<'a>);

struct Headers<'a>(&'a HeaderMap);

impl Asked<'_> {
    /// # Errors
    /// None that is known of: it is strings and JSON that was checked.
    pub(crate) fn for_handler(
        &self,
        body: Option<&RawValue>,
        request_body: &ChannelRef,
        response: &ChannelRef,
    ) -> Result<Raw, serde_json::Error> {
        serde_json::value::to_raw_value(&HandlerPayload {
            path_params: PathParameters(self),
            query_params: self.query(),
            headers: Headers(&self.parts.headers),
            path: &self.route.path,
            method: self.method().as_str(),
            body,
            trigger: TriggerPart { kind: "http", path: &self.route.path, method: self.route.method.as_str() },
            request_body,
            response,
        })
    }

    /// # Errors
    /// As for a handler.
    pub(crate) fn for_middleware(&self) -> Result<Raw, serde_json::Error> {
        serde_json::value::to_raw_value(&MiddlewarePayload {
            phase: "preHandler",
            request: RequestPart {
                path_params: PathParameters(self),
                query_params: self.query(),
                headers: Headers(&self.parts.headers),
                method: self.method().as_str(),
            },
            context: Empty {},
        })
    }

    fn method(&self) -> &Method {
        &self.parts.method
    }

    /// Of a repeated key the last value.
    fn query(&self) -> BTreeMap<Cow<'_, str>, Cow<'_, str>> {
        let query = self.parts.uri.query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).collect()
    }
}

impl Serialize for PathParameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.route.parameter_names().zip(self.0.parameters))
    }
}

impl Serialize for Headers<'_> {
    /// Repeated fields are joined, as RFC 9110 5.3 and RFC 9113 8.2.3 (cookies) have it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.keys_len()))?;
        for name in self.0.keys() {
            let mut values = self.0.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            let first = values.next().unwrap_or_default();
            let between = if name == COOKIE { "; " } else { ", " };
            let joined = values.fold(first, |joined, value| joined + between + value);
            map.serialize_entry(name.as_str(), &joined)?;
        }
        map.end()
    }
}

/// Whether the body is to be parsed for the handler.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    const JSON: &[u8] = b"application/json";
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().windows(JSON.len()).any(|part| part.eq_ignore_ascii_case(JSON)))
}

/// A body as JSON, where it is. It is checked as strictly as by a parser that keeps everything: text and numbers that a
/// worker could not read, and nesting that would exhaust one, are no JSON.
pub(crate) fn checked_json(body: &[u8]) -> Option<&RawValue> {
    let text = std::str::from_utf8(body).ok()?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Check { levels: MAX_NESTING }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    serde_json::from_str(text).ok()
}

/// Visits a value and everything in it, and keeps nothing.
struct Check {
    /// How many more may be nested.
    levels: u8,
}

impl Check {
    fn inner<E: serde::de::Error>(self) -> Result<impl Fn() -> Self, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(move || Self { levels })
    }
}

impl<'de> DeserializeSeed<'de> for Check {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while entries.next_key_seed(inner())?.is_some() {
            entries.next_value_seed(inner())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::route::tests::binding;

    fn reference(direction: &str) -> ChannelRef {
        let reference = json!({"channel_id": "c", "access_key": "k", "direction": direction});
        serde_json::from_value(reference).expect("a reference")
    }

    #[test]
    fn a_handler_is_given_the_documented_shape() {
        let request = Request::post("/users/42?full=1&x=a%20b&full=2&flag")
            .header("Content-Type", "application/json")
            .header("X-Many", "1")
            .header("x-many", "2")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let config = json!({"api_path": "users/:id", "http_method": "POST"});
        let route = Route::new(binding("b", config)).expect("a route");
        let asked = Asked { parts: &parts, route: &route, parameters: &["4\"2".into()] };
        let body = checked_json(br#" {"name": "Ada", "n": 1.50} "#);
        let payload = asked.for_handler(body, &reference("read"), &reference("write")).expect("a payload");
        assert!(payload.get().contains(r#""body":{"name": "Ada", "n": 1.50},"#), "{payload}");
        let payload: Value = serde_json::from_str(payload.get()).expect("JSON");
        let request = json!({
            "path_params": {"id": "4\"2"}, "query_params": {"full": "2", "x": "a b", "flag": ""},
            "headers": {"content-type": "application/json", "x-many": "1, 2", "cookie": "a=1; b=2"},
            "method": "POST",
        });
        let mut expected = request.clone();
        expected["path"] = json!("users/:id");
        expected["body"] = json!({"name": "Ada", "n": 1.5});
        expected["trigger"] = json!({"type": "http", "path": "users/:id", "method": "POST"});
        expected["request_body"] = json!({"channel_id": "c", "access_key": "k", "direction": "read"});
        expected["response"] = json!({"channel_id": "c", "access_key": "k", "direction": "write"});
        assert_eq!(payload, expected);
        let payload = asked.for_middleware().expect("a payload");
        let payload: Value = serde_json::from_str(payload.get()).expect("JSON");
        assert_eq!(payload, json!({"phase": "preHandler", "request": request, "context": {}}));
    }

    #[test]
    fn what_a_worker_could_not_read_is_no_json() {
        let nested = |levels: u8| "[".repeat(levels.into()) + &"]".repeat(levels.into());
        let deep = nested(MAX_NESTING + 1);
        assert!(checked_json(nested(MAX_NESTING).as_bytes()).is_some());
        for bad in ["", "{", "nope", "{} {}", r#""\ud800""#, "1e999", "\"\u{1}\"", &deep] {
            assert!(checked_json(bad.as_bytes()).is_none(), "{bad:.20}");
        }
        assert!(checked_json(b"\"\xff\"").is_none());
        assert_eq!(checked_json(b" null ").map(RawValue::get), Some("null"));
    }

    #[test]
    fn json_is_known_by_its_content_type() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().expect("a value"));
            is_json(&headers)
        };
        assert!(with("application/json") && with("Application/JSON; charset=utf-8"));
        assert!(!with("application/octet-stream") && !with("text/json") && !is_json(&HeaderMap::new()));
    }

    proptest! {
        /// A body is embedded exactly if a parser that keeps everything takes it.
        #[test]
        fn checking_and_parsing_agree(text in r#"[\[\]{}",:0-9a-e\\ tru.null-]{0,24}"#) {
            let parsed = serde_json::from_str::<Value>(&text).is_ok();
            prop_assert_eq!(checked_json(text.as_bytes()).is_some(), parsed);
        }
    }
}
