//! One function: its request, and how its response is read.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use engine_builtin::{Answer, BoxFuture, ErrorBody, Raw, Trace};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url};
use uuid::Uuid;

use crate::invocation::Target;
use crate::policy::{Policy, UrlRefused, host_of};
use crate::response;

/// No response has longer, whatever a function's `timeout_ms` says.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// A result of this size still fits into one frame of the worker protocol.
pub const MAX_RESPONSE_BYTES: usize = 15 * 1024 * 1024;

/// A function that is an HTTP endpoint. Its URL was allowed and its secrets were there when it was registered.
#[derive(Clone)]
pub struct HttpFunction {
    pub(crate) id: HeaderValue,
    pub(crate) target: Arc<Target>,
    pub(crate) policy: Policy,
    pub(crate) client: Client,
}

impl HttpFunction {
    /// Sends `data` and reads what comes back. Dropping the future breaks off the request.
    ///
    /// # Errors
    /// (In the answer.) The endpoint's own code and message, or one of `url_validation_failed`, `http_request_failed`,
    /// `http_response_failed`, `invalid_response`, `http_error`, `timestamp_error`.
    #[must_use]
    pub fn call(&self, data: Option<Raw>, trace: Trace) -> BoxFuture<'static, Answer> {
        let function = self.clone();
        Box::pin(async move {
            function.policy.check(&function.target.url)?;
            let body = data.map_or_else(|| "null".to_owned(), |data| String::from(Box::<str>::from(data)));
            let headers = function.headers(&body, &trace)?;
            let target = &function.target;
            let request = function.client.request(target.method.clone(), target.url.clone());
            let sent = request.headers(headers).timeout(target.timeout).body(body).send().await;
            let response = sent.map_err(|error| function.failed("http_request_failed", error))?;
            let status = response.status().as_u16();
            let body = function.read(response).await?;
            response::answer(status, &body)
        })
    }

    fn headers(&self, body: &str, trace: &Trace) -> Result<HeaderMap, ErrorBody> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_err(|error| ErrorBody::new("timestamp_error", error.to_string()))?.as_secs();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-iii-function-path", self.id.clone());
        put(&mut headers, "x-iii-invocation-id", &Uuid::new_v4().to_string());
        put(&mut headers, "x-iii-timestamp", &now.to_string());
        put(&mut headers, "traceparent", trace.traceparent.as_deref().unwrap_or_default());
        put(&mut headers, "baggage", trace.baggage.as_deref().unwrap_or_default());
        headers.extend(self.target.headers.clone());
        if let Some(signature) = &self.target.signature {
            let digest = signature.of(&format!("{now}:{}", BASE64_STANDARD.encode(body)));
            put(&mut headers, "x-iii-signature", &format!("sha256={digest}"));
        }
        Ok(headers)
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, ErrorBody> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.failed("http_response_failed", error))? {
            if body.len() + piece.len() > MAX_RESPONSE_BYTES {
                let message = format!("{}: the response has more than {MAX_RESPONSE_BYTES} bytes", self.shown());
                return Err(ErrorBody::new("http_response_failed", message));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn failed(&self, code: &str, error: reqwest::Error) -> ErrorBody {
        let error = error.without_url();
        let mut causes = vec![error.to_string()];
        let mut next = error.source();
        while let Some(cause) = next {
            if let Some(refused) = cause.downcast_ref::<UrlRefused>() {
                return refused.clone().into();
            }
            causes.push(cause.to_string());
            next = cause.source();
        }
        if error.is_timeout() {
            causes = vec![format!("no answer within {} ms", self.target.timeout.as_millis())];
        }
        causes.dedup();
        ErrorBody::new(code, format!("{}: {}", self.shown(), causes.join(": ")))
    }

    /// What may be shown of the request: neither credentials nor parameters.
    fn shown(&self) -> String {
        let url: &Url = &self.target.url;
        format!("{} {}://{}{}", self.target.method, url.scheme(), host_of(url), url.path())
    }
}

/// What is empty, or no value of a header though a caller sent it, is left out.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) if !value.is_empty() => {
            headers.insert(name, value);
        }
        _ => {}
    }
}
