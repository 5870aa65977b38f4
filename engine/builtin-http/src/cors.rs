//! Which pages of other origins may call, and what their browsers are told.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN,
    VARY,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response};

use crate::response::ResponseBody;
use crate::settings::CorsSettings;

const ANY: HeaderValue = HeaderValue::from_static("*");

pub(crate) struct Cors {
    /// None: any.
    origins: Option<Vec<HeaderValue>>,
    methods: HeaderValue,
}

impl Cors {
    pub(crate) fn new(settings: Option<&CorsSettings>) -> Self {
        let listed = |list: &[String]| !list.is_empty() && !list.iter().any(|item| item == "*");
        let origins = settings.map(|cors| cors.allowed_origins.as_slice()).filter(|origins| listed(origins));
        let methods = settings.map(|cors| cors.allowed_methods.as_slice()).filter(|methods| listed(methods));
        Self {
            // An origin that is no header value is never one of a request.
            origins: origins.map(|list| list.iter().filter_map(|origin| origin.parse().ok()).collect()),
            methods: methods.and_then(|list| list.join(",").to_ascii_uppercase().parse().ok()).unwrap_or(ANY),
        }
    }

    /// Answers a browser that asks beforehand; any other request goes on.
    pub(crate) fn preflight(&self, request: &Parts) -> Option<Response<ResponseBody>> {
        let asks = request.method == Method::OPTIONS
            && request.headers.contains_key(ORIGIN)
            && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !asks {
            return None;
        }
        let mut response = Response::new(ResponseBody::whole(""));
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
        // By name: browsers do not count `authorization` among `*`.
        let asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.cloned().unwrap_or(ANY));
        headers.insert(VARY, HeaderValue::from_static("access-control-request-headers"));
        self.mark(request.headers.get(ORIGIN), headers);
        Some(response)
    }

    /// Says who may read an answer. What its handler has said itself stays.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let allowed = match &self.origins {
            None => Some(ANY),
            Some(list) => {
                headers.append(VARY, HeaderValue::from_static("origin"));
                origin.filter(|origin| list.contains(origin)).cloned()
            }
        };
        if let Some(allowed) = allowed {
            headers.entry(ACCESS_CONTROL_ALLOW_ORIGIN).or_insert(allowed);
            headers.entry(ACCESS_CONTROL_EXPOSE_HEADERS).or_insert(ANY);
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn cors(origins: &[&str], methods: &[&str]) -> Cors {
        let own = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        Cors::new(Some(&CorsSettings { allowed_origins: own(origins), allowed_methods: own(methods) }))
    }

    fn preflight(cors: &Cors, origin: &str) -> HeaderMap {
        let request = Request::options("/x")
            .header(ORIGIN, origin)
            .header(ACCESS_CONTROL_REQUEST_METHOD, "PUT")
            .header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization,x-a");
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        cors.preflight(&parts).expect("an answer").headers().clone()
    }

    #[test]
    fn without_settings_anyone_may_do_anything() {
        for open in [Cors::new(None), cors(&[], &[]), cors(&["https://a", "*"], &["GET", "*"])] {
            let headers = preflight(&open, "https://b");
            assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
            assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "*");
            assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,x-a");
        }
    }

    #[test]
    fn listed_origins_are_named_and_others_get_nothing() {
        let closed = cors(&["https://a", "https://b"], &["get", "POST"]);
        let headers = preflight(&closed, "https://b");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://b");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "GET,POST");
        let headers = preflight(&closed, "https://c");
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        let mut headers = HeaderMap::new();
        closed.mark(None, &mut headers);
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(headers[VARY], "origin");
    }

    #[test]
    fn a_handlers_own_words_stay() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://mine"));
        Cors::new(None).mark(None, &mut headers);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://mine");
    }

    #[test]
    fn only_a_browsers_question_is_a_preflight() {
        let (parts, ()) = Request::options("/x").header(ORIGIN, "https://a").body(()).expect("a request").into_parts();
        assert!(Cors::new(None).preflight(&parts).is_none());
    }
}
