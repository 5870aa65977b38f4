//! An engine that has functions and channels and nothing else, and a client for what is in front of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use engine_builtin::{
    Answer, Binding, BoxFuture, Builtin, ChannelRef, EngineApi, ErrorBody, Invocation, PipeReader, PipeWriter, Raw,
    Stats, Trace, pipe,
};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::Http;

/// Nothing here takes as long; what does, hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);

type Function = Arc<dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What a function is called with.
pub(super) struct Asked {
    pub(super) payload: Value,
    pub(super) trace: Trace,
    engine: Arc<FakeEngine>,
}

impl Asked {
    pub(super) fn request_body(&self) -> PipeReader {
        let id = self.payload["request_body"]["channel_id"].as_str().expect("a channel");
        self.engine.readers.lock().expect("a lock").remove(id).expect("not taken before")
    }

    pub(super) fn response(&self) -> PipeWriter {
        let id = self.payload["response"]["channel_id"].as_str().expect("a channel");
        self.engine.writers.lock().expect("a lock").remove(id).expect("not taken before")
    }
}

#[derive(Default)]
pub(super) struct FakeEngine {
    functions: Mutex<HashMap<String, Function>>,
    readers: Mutex<HashMap<String, PipeReader>>,
    writers: Mutex<HashMap<String, PipeWriter>>,
    /// Itself, for what it calls.
    this: std::sync::Weak<FakeEngine>,
}

impl FakeEngine {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self { this: this.clone(), ..Self::default() })
    }

    pub(super) fn offer<F>(&self, id: &str, function: impl Fn(Asked) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let function: Function = Arc::new(move |asked| function(asked).boxed());
        self.functions.lock().expect("a lock").insert(id.into(), function);
    }

    /// Channels that nobody has attached.
    pub(super) fn offered_channels(&self) -> usize {
        self.readers.lock().expect("a lock").len() + self.writers.lock().expect("a lock").len()
    }

    /// A function that answers always the same.
    pub(super) fn offer_value(&self, id: &str, value: Value) {
        self.offer(id, move |_| std::future::ready(answer(value.clone())));
    }
}

pub(super) fn answer(value: Value) -> Answer {
    engine_builtin::encode(&value)
}

impl EngineApi for FakeEngine {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        let Invocation { function_id, data, trace } = invocation;
        let function = self.functions.lock().expect("a lock").get(&function_id).cloned();
        let engine = self.this.upgrade().expect("it is being used");
        async move {
            let Some(function) = function else {
                return Err(ErrorBody::new("function_not_found", format!("Function {function_id} not found")));
            };
            function(Asked { payload: payload(&data), trace, engine }).await
        }
        .boxed()
    }

    fn knows(&self, function_id: &str) -> bool {
        self.functions.lock().expect("a lock").contains_key(function_id)
    }

    fn pipe_to_worker(&self, items: usize) -> (PipeWriter, ChannelRef) {
        let (writer, reader) = pipe(items);
        let id = Uuid::new_v4().to_string();
        self.readers.lock().expect("a lock").insert(id.clone(), reader);
        (writer, reference(id, "read"))
    }

    fn pipe_from_worker(&self, items: usize) -> (ChannelRef, PipeReader) {
        let (writer, reader) = pipe(items);
        let id = Uuid::new_v4().to_string();
        self.writers.lock().expect("a lock").insert(id.clone(), writer);
        (reference(id, "write"), reader)
    }

    fn withdraw(&self, channel: &ChannelRef) {
        self.readers.lock().expect("a lock").remove(&channel.channel_id);
        self.writers.lock().expect("a lock").remove(&channel.channel_id);
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn version(&self) -> &'static str {
        "0.0.0"
    }
}

fn payload(data: &Raw) -> Value {
    serde_json::from_str(data.get()).expect("a payload is JSON")
}

fn reference(channel_id: String, direction: &str) -> ChannelRef {
    let reference = json!({"channel_id": channel_id, "access_key": "key", "direction": direction});
    serde_json::from_value(reference).expect("a reference")
}

/// A worker that listens on a port of its own.
pub(super) async fn listening(engine: &Arc<FakeEngine>, mut settings: Value) -> (Arc<Http>, SocketAddr) {
    settings["host"] = json!("127.0.0.1");
    settings["port"] = json!(0);
    let http = Http::new(Arc::clone(engine) as _, settings, None).expect("settings");
    http.start().await.expect("a port");
    let address = http.address().await.expect("it listens");
    (http, address)
}

/// Binds `id` to a route; its function has the same id.
pub(super) fn bind(http: &Http, id: &str, config: Value) {
    try_bind(http, id, config).expect("a binding");
}

pub(super) fn try_bind(http: &Http, id: &str, config: Value) -> Result<(), ErrorBody> {
    http.bind(Binding {
        id: id.into(),
        trigger_type: "http".into(),
        function_id: id.into(),
        config,
        owner: None,
        vm: None,
    })
}

/// A connection of a client.
pub(super) async fn connect<B>(address: SocketAddr) -> SendRequest<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let socket = TcpStream::connect(address).await.expect("it listens");
    let (client, connection) = http1::handshake(TokioIo::new(socket)).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Seen {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

pub(super) async fn read<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Seen {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Seen { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// One request over a connection of its own.
pub(super) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Seen {
    let exchange = async {
        let response: Response<Incoming> = connect(address).await.send_request(request).await.expect("an answer");
        read(response).await
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
}

pub(super) fn request(method: &str, path: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "test").body(Full::default()).expect("a request")
}

pub(super) fn with_body(method: &str, path: &str, kind: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = request(method, path);
    request.headers_mut().insert("content-type", kind.parse().expect("a value"));
    *request.body_mut() = Full::new(body.into());
    request
}
