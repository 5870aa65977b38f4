//! Where telemetry is sent, as the OTLP environment variables say it.

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    HttpProtobuf,
}

impl Protocol {
    /// JSON is not offered: whoever takes it takes protobuf too, at the same address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "grpc" => Some(Self::Grpc),
            "http/protobuf" | "http/json" | "http" => Some(Self::HttpProtobuf),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub(crate) endpoint: Uri,
    pub(crate) protocol: Protocol,
    /// Their values are secrets.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// The URL of one signal: whatever path the endpoint has, it ends with `/v1/<signal>` once.
    pub(super) fn http_url(&self, signal: &str) -> Option<Uri> {
        let mut parts = self.endpoint.clone().into_parts();
        let path = parts.path_and_query.as_ref().map_or("", |path| path.path()).trim_end_matches('/');
        let base =
            ["/v1/traces", "/v1/metrics", "/v1/logs"].iter().find_map(|end| path.strip_suffix(end)).unwrap_or(path);
        let query = parts.path_and_query.as_ref().and_then(|path| path.query());
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        parts.path_and_query = Some(format!("{base}/v1/{signal}{query}").parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// `name=value,name=value`, values percent-encoded. None when one of them cannot be a header.
pub(crate) fn headers(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
    };
    text.split(',').filter(|pair| !pair.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn an_http_path_ends_with_its_signal_once() {
        for (endpoint, url) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("http://c/otlp/", "http://c/otlp/v1/traces"),
            ("http://c/otlp/v1/logs", "http://c/otlp/v1/traces"),
            ("http://c/v1/traces/?key=x", "http://c/v1/traces?key=x"),
        ] {
            let endpoint = endpoint.parse().expect("a URL");
            let target = Target { endpoint, protocol: Protocol::HttpProtobuf, headers: Vec::new() };
            assert_eq!(target.http_url("traces").expect("a URL"), url);
        }
    }

    #[test]
    fn headers_are_percent_decoded_and_not_shown() {
        let read = headers("authorization=Bearer%20a%3Db, x-team = ops ,").expect("headers");
        assert_eq!(read[0].1, "Bearer a=b");
        assert_eq!((read[1].0.as_str(), &read[1].1), ("x-team", &HeaderValue::from_static("ops")));
        assert!(!format!("{read:?}").contains("Bearer"));
        for bad in ["novalue", "a b=c", "x=%0a"] {
            assert_eq!(headers(bad), None, "{bad}");
        }
    }
}
