//! From a request to a WebSocket (RFC 6455, section 4.2): the handshake, and the bare connection behind it.

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tracing::debug;

/// RFC 6455, section 1.3: what tells that we speak the protocol.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request that asks for a WebSocket as it should.
pub(crate) struct Upgrade {
    accept: HeaderValue,
    upgraded: OnUpgrade,
}

impl Upgrade {
    /// Says yes; `serve` gets the connection when the peer has heard that.
    pub(crate) fn serve<F>(self, serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        tokio::spawn(async move {
            match self.upgraded.await {
                Ok(upgraded) => serve(TokioIo::new(upgraded)).await,
                Err(error) => debug!(%error, "peer left during its handshake"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let bad = |reason| Err((StatusCode::BAD_REQUEST, reason));
        if parts.method != Method::GET {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is asked for with GET"));
        }
        if !lists(&parts.headers, &CONNECTION, "upgrade") || !lists(&parts.headers, &UPGRADE, "websocket") {
            return bad("this is a WebSocket: `Connection: upgrade` and `Upgrade: websocket` are missing");
        }
        if parts.headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return bad("`Sec-WebSocket-Version` must be 13");
        }
        let Some(accept) = parts.headers.get(SEC_WEBSOCKET_KEY).and_then(accept) else {
            return bad("`Sec-WebSocket-Key` is missing");
        };
        match parts.extensions.remove() {
            Some(upgraded) => Ok(Self { accept, upgraded }),
            None => Err((StatusCode::UPGRADE_REQUIRED, "this connection cannot be upgraded")),
        }
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(wanted))
}

fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    HeaderValue::try_from(STANDARD.encode(digest)).ok()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn the_key_is_answered() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).expect("a header"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    async fn refusal(method: &str, headers: &[(&str, &str)]) -> StatusCode {
        let request = headers
            .iter()
            .fold(Request::builder().method(method), |request, (name, value)| request.header(*name, *value));
        let mut parts = request.body(()).expect("a request").into_parts().0;
        match Upgrade::from_request_parts(&mut parts, &()).await {
            Ok(_) => StatusCode::OK,
            Err((status, _)) => status,
        }
    }

    #[tokio::test]
    async fn what_is_no_handshake_is_refused() {
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        // All is well but that there is no connection.
        assert_eq!(refusal("GET", &good).await, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(refusal("POST", &good).await, StatusCode::METHOD_NOT_ALLOWED);
        for missing in 0..good.len() {
            let mut headers = good.to_vec();
            headers.remove(missing);
            assert_eq!(refusal("GET", &headers).await, StatusCode::BAD_REQUEST);
        }
    }
}
