//! Requests to a collector: one HTTP client under both protocols, with the host's trust store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use rustls::{ClientConfig, RootCertStore};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::{Protocol, Signal, Target};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Of an answer that we read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

pub(crate) type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

/// Whose certificates are believed.
pub(crate) type Roots = fn() -> RootCertStore;

/// The host's trust store, where companies put their own authorities.
pub(crate) fn host_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "part of the host's trust store cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

pub(crate) fn http_client(url: &Uri, roots: Roots) -> HttpClient {
    client(url, Version::Http1, roots)
}

/// The trust store is read only where it is needed.
fn client(url: &Uri, version: Version, roots: impl FnOnce() -> RootCertStore) -> HttpClient {
    let roots = if url.scheme_str() == Some("https") { roots() } else { RootCertStore::empty() };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of these versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let connector = match version {
        Version::Http1 => builder.enable_http1().wrap_connector(connector),
        Version::Http2 => builder.enable_http2().wrap_connector(connector),
    };
    Client::builder(TokioExecutor::new()).http2_only(version == Version::Http2).build(connector)
}

/// Why a request did not do.
#[derive(Debug)]
pub(super) enum SendError {
    /// Try again later.
    Away(String),
    /// It will never do.
    Refused(String),
}

/// The way to one collector.
#[derive(Clone)]
pub(crate) struct Transport {
    client: HttpClient,
    target: Target,
}

impl Transport {
    pub(crate) fn new(target: &Target, roots: Roots) -> Self {
        let version = match target.protocol {
            Protocol::Grpc => Version::Http2,
            Protocol::HttpProtobuf => Version::Http1,
        };
        Self { client: client(&target.endpoint, version, roots), target: target.clone() }
    }

    pub(super) async fn send<S: Signal>(&self, request: S::Request) -> Result<(), SendError> {
        let sending = async {
            match self.target.protocol {
                Protocol::Grpc => self.grpc::<S>(request).await,
                Protocol::HttpProtobuf => self.http::<S>(request).await,
            }
        };
        let response = tokio::time::timeout(REQUEST_TIMEOUT, sending)
            .await
            .map_err(|_| SendError::Away("no answer in time".to_owned()))??;
        if let Some((count, why)) = S::rejected(&response) {
            tracing::warn!(signal = S::NAME, count, why, "collector rejected part of the telemetry");
        }
        Ok(())
    }

    async fn grpc<S: Signal>(&self, request: S::Request) -> Result<S::Response, SendError> {
        let mut grpc = tonic::client::Grpc::with_origin(self.client.clone(), self.target.endpoint.clone());
        grpc.ready().await.map_err(|error| SendError::Away(chain(&error)))?;
        let mut request = tonic::Request::new(request);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers());
        let codec = ProstCodec::<S::Request, S::Response>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(S::GRPC), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| grpc_error(&status))
    }

    async fn http<S: Signal>(&self, request: S::Request) -> Result<S::Response, SendError> {
        let url = self.target.http_url(S::HTTP);
        let url = url.ok_or_else(|| SendError::Refused(format!("{} has no such path", self.target.endpoint)))?;
        let body = Body::new(Full::new(Bytes::from(request.encode_to_vec())));
        let mut request = Request::post(url).body(body).map_err(|error| SendError::Refused(chain(&error)))?;
        *request.headers_mut() = self.headers();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let answer = self.client.request(request).await.map_err(|error| SendError::Away(chain(&error)))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(http_error(status));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        // It was taken; what else the collector says is of no weight.
        Ok(body.ok().and_then(|body| S::Response::decode(body.to_bytes()).ok()).unwrap_or_default())
    }

    fn headers(&self) -> HeaderMap {
        self.target.headers.iter().cloned().collect()
    }
}

/// Which answers are worth another try is OTLP's own list; without an answer it always is.
fn grpc_error(status: &Status) -> SendError {
    let away = matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    );
    let source = std::error::Error::source(status).map(chain);
    let why = source.as_ref().map_or_else(|| format!("{:?}: {}", status.code(), status.message()), String::clone);
    if away || source.is_some() { SendError::Away(why) } else { SendError::Refused(why) }
}

fn http_error(status: StatusCode) -> SendError {
    let away = matches!(status.as_u16(), 408 | 429 | 502..=504);
    if away { SendError::Away(status.to_string()) } else { SendError::Refused(status.to_string()) }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// A webhook, within the time of a request.
///
/// # Errors
/// Why it did not arrive.
pub(crate) async fn post_json(client: &HttpClient, url: &Uri, json: &serde_json::Value) -> Result<(), String> {
    let body = Body::new(Full::new(Bytes::from(json.to_string())));
    let request = Request::post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| chain(&error))?;
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.request(request)).await;
    let status = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|error| chain(&error))?.status();
    if status.is_success() { Ok(()) } else { Err(status.to_string()) }
}
