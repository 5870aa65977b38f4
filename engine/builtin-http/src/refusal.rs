//! Requests that the engine answers itself, and the envelope that it says why in.

use engine_builtin::ErrorBody;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use tracing::warn;
use uuid::Uuid;

use crate::headers::JSON;
use crate::payload::MAX_JSON_BYTES;
use crate::response::ResponseBody;

/// Why a request does not get its handler's answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no route for {method} {path}")]
    NoRoute { method: Method, path: String },
    #[error("the path has other methods")]
    OtherMethods(Vec<Method>),
    #[error("a JSON body may have at most {MAX_JSON_BYTES} bytes")]
    TooLarge,
    #[error("the request's body broke off")]
    BrokenBody,
    #[error("condition not met")]
    ConditionNotMet,
    /// A condition, a middleware or the handler failed. Its own code and message are the answer's.
    #[error("{}", error.message)]
    Failed { function_id: String, error: ErrorBody },
    #[error("{0}")]
    Internal(String),
    #[error("middleware `{0}` took too long")]
    MiddlewareTooSlow(String),
    #[error("the request took too long")]
    TooSlow,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: EnvelopeError<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<bool>,
}

#[derive(Serialize)]
struct EnvelopeError<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_id: Option<Uuid>,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::OtherMethods(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::ConditionNotMet => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Failed { .. } | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::MiddlewareTooSlow(_) | Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// None where the published engine answers with an empty body.
    fn code(&self) -> Option<&str> {
        Some(match self {
            Self::NoRoute { .. } => "NOT_FOUND",
            Self::TooLarge => "PAYLOAD_TOO_LARGE",
            Self::BrokenBody => "BAD_REQUEST",
            Self::ConditionNotMet => "CONDITION_NOT_MET",
            Self::Failed { error, .. } => &error.code,
            Self::Internal(_) => "INTERNAL_ERROR",
            Self::MiddlewareTooSlow(_) => "MIDDLEWARE_TIMEOUT",
            Self::OtherMethods(_) | Self::TooSlow => return None,
        })
    }

    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        let status = self.status();
        let Some(code) = self.code() else { return self.into_empty_response() };
        let error_id = status.is_server_error().then(Uuid::new_v4);
        if let Some(error_id) = error_id {
            let function = match &self {
                Self::Failed { function_id, .. } => function_id.as_str(),
                _ => "",
            };
            warn!(%error_id, function, code, error = %self, "HTTP request failed");
        }
        let message = self.to_string();
        let envelope = Envelope {
            error: EnvelopeError { code, message: &message, error_id },
            skipped: matches!(self, Self::ConditionNotMet).then_some(true),
        };
        // Three strings: there is nothing in it that cannot be written.
        let text = serde_json::to_string(&envelope).unwrap_or_default();
        let mut response = Response::new(ResponseBody::whole(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }

    fn into_empty_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::whole(""));
        *response.status_mut() = self.status();
        if let Self::OtherMethods(methods) = &self {
            response.headers_mut().insert(ALLOW, crate::headers::allow(methods));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn envelope(refusal: Refusal) -> (u16, Value) {
        let response = refusal.into_response();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[tokio::test]
    async fn what_the_server_did_wrong_can_be_found_again_by_its_id() {
        let (status, body) = envelope(Refusal::Internal("oh".into())).await;
        assert_eq!(
            (status, &body["error"]["code"], &body["error"]["message"]),
            (500, &json!("INTERNAL_ERROR"), &json!("oh"))
        );
        assert!(body["error"]["error_id"].as_str().is_some_and(|id| id.parse::<Uuid>().is_ok()));
        let error = ErrorBody::new("nope", "no \"such\" user");
        let (status, body) = envelope(Refusal::Failed { function_id: "f".into(), error }).await;
        assert_eq!(
            (status, &body["error"]["code"], &body["error"]["message"]),
            (500, &json!("nope"), &json!("no \"such\" user"))
        );
        let (status, body) = envelope(Refusal::MiddlewareTooSlow("m".into())).await;
        assert_eq!((status, &body["error"]["code"]), (504, &json!("MIDDLEWARE_TIMEOUT")));
    }

    #[tokio::test]
    async fn what_the_client_did_wrong_has_no_id() {
        let (status, body) = envelope(Refusal::ConditionNotMet).await;
        let error = json!({"code": "CONDITION_NOT_MET", "message": "condition not met"});
        assert_eq!((status, body), (422, json!({"error": error, "skipped": true})));
        let (status, body) = envelope(Refusal::NoRoute { method: Method::GET, path: "/x".into() }).await;
        let error = json!({"code": "NOT_FOUND", "message": "no route for GET /x"});
        assert_eq!((status, body), (404, json!({"error": error})));
    }

    #[tokio::test]
    async fn some_refusals_have_no_body() {
        assert_eq!(envelope(Refusal::TooSlow).await, (504, Value::Null));
        assert_eq!(envelope(Refusal::OtherMethods(vec![Method::GET])).await, (405, Value::Null));
        let response = Refusal::OtherMethods(vec![Method::GET, Method::POST]).into_response();
        assert_eq!(response.headers()[ALLOW], "GET, POST, HEAD, OPTIONS");
    }
}
