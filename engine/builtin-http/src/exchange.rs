//! One request and its answer, from its head to the moment its answer begins.
//!
//! ```text
//! preflight ─► slot ─► route ─► global middleware ─► body, condition ─► route's middleware ─► handler
//! ```
//! Everything runs in the connection's task: when the client leaves, all of it is dropped where it waits.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use engine_builtin::{
    Answer, BoxFuture, ChannelRef, Engine, ErrorBody, Invocation, Item, PipeReader, Raw, Trace, is_met,
};
use hyper::header::{ALLOW, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::channel_answer::Head;
use crate::cors::Cors;
use crate::payload::{self, Asked};
use crate::refusal::Refusal;
use crate::response::ResponseBody;
use crate::route::Route;
use crate::routes::{Found, Routes};
use crate::settings::HttpSettings;
use crate::slots::Slots;
use crate::upload::{self, CHANNEL_ITEMS, RequestBody, Upload};
use crate::{answer, headers, trace};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) routes: RwLock<Routes>,
    pub(crate) slots: Slots,
    policy: RwLock<Arc<Policy>>,
}

/// The settings that a request goes by, the same ones to its end.
struct Policy {
    cors: Cors,
    timeout: Duration,
    middleware: Vec<String>,
}

impl Policy {
    fn new(settings: &HttpSettings) -> Arc<Self> {
        let cors = Cors::new(settings.cors.as_ref());
        Arc::new(Self { cors, timeout: settings.timeout, middleware: settings.middleware() })
    }
}

impl Shared {
    pub(crate) fn new(engine: Engine, settings: &HttpSettings) -> Self {
        Self {
            engine,
            routes: RwLock::default(),
            slots: Slots::new(settings.concurrency_request_limit),
            policy: RwLock::new(Policy::new(settings)),
        }
    }

    /// For every request that begins from now on.
    pub(crate) fn apply(&self, settings: &HttpSettings) {
        self.slots.resize(settings.concurrency_request_limit);
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Policy::new(settings);
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn respond(&self, request: Request<impl RequestBody>) -> Response<ResponseBody> {
        let begun = Instant::now();
        let policy = self.policy();
        let (parts, body) = request.into_parts();
        if let Some(response) = policy.cors.preflight(&parts) {
            upload::linger(body);
            return response;
        }
        let mut exchange = Exchange {
            shared: self,
            policy: &policy,
            deadline: begun + policy.timeout,
            parts: &parts,
            trace: trace::of(&parts.headers),
            body: Some(body),
            upload: None,
        };
        let mut response = exchange.run().await.unwrap_or_else(Refusal::into_response);
        if let Some(unread) = exchange.body.take() {
            upload::linger(unread);
        }
        if let Some(upload) = exchange.upload.take() {
            response.body_mut().hold(upload);
        }
        policy.cors.mark(parts.headers.get(ORIGIN), response.headers_mut());
        debug!(
            method = %parts.method,
            path = parts.uri.path(),
            status = response.status().as_u16(),
            traceparent = exchange.trace.traceparent,
            elapsed_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
        response
    }
}

/// What a middleware says. Anything that is not an answer lets the request pass.
#[derive(Deserialize)]
struct Verdict {
    action: String,
    #[serde(default)]
    response: Option<Raw>,
}

/// Channels that a handler may attach until its answer is there.
struct Offer<'a> {
    engine: &'a Engine,
    channels: [ChannelRef; 2],
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        for channel in &self.channels {
            self.engine.withdraw(channel);
        }
    }
}

struct Exchange<'a, B> {
    shared: &'a Shared,
    policy: &'a Policy,
    deadline: Instant,
    parts: &'a Parts,
    trace: Trace,
    /// Until somebody takes it.
    body: Option<B>,
    upload: Option<Upload>,
}

impl<B: RequestBody> Exchange<'_, B> {
    async fn run(&mut self) -> Result<Response<ResponseBody>, Refusal> {
        let _slot = self.within(self.shared.slots.take()).await?;
        let (method, path) = (&self.parts.method, self.parts.uri.path());
        let found = self.shared.routes.read().unwrap_or_else(PoisonError::into_inner).find(method, path);
        match found {
            Found::Route(route, parameters) => self.ask(&route, &parameters).await,
            Found::OtherMethods(methods) if method == Method::OPTIONS => Ok(options(&methods)),
            Found::OtherMethods(methods) => Err(Refusal::OtherMethods(methods)),
            Found::Nothing => Err(Refusal::NoRoute { method: method.clone(), path: path.to_owned() }),
        }
    }

    async fn ask(&mut self, route: &Route, parameters: &[Cow<'_, str>]) -> Result<Response<ResponseBody>, Refusal> {
        let asked = Asked { parts: self.parts, route, parameters };
        if let Some(response) = self.pass(&self.policy.middleware, &asked).await? {
            return Ok(response);
        }
        let whole = self.read_json().await?;
        let (to_worker, request_body) = self.shared.engine.pipe_to_worker(CHANNEL_ITEMS);
        let (response, from_worker) = self.shared.engine.pipe_from_worker(CHANNEL_ITEMS);
        let _offer = Offer { engine: &self.shared.engine, channels: [request_body.clone(), response.clone()] };
        let json = whole.as_deref().and_then(payload::checked_json);
        let payload = asked.for_handler(json, &request_body, &response).map_err(unwritten)?;
        // From here on a worker may read it: those who are asked before its handler included.
        self.upload = match (whole, self.body.take()) {
            (Some(bytes), _) => upload::hand_over(bytes, to_worker),
            (None, Some(body)) => upload::stream(body, to_worker),
            (None, None) => None,
        };
        let Some(upload) = &self.upload else { return self.decide(&asked, payload, from_worker).await };
        let client_left = upload.client_left();
        tokio::select! {
            answered = self.decide(&asked, payload, from_worker) => answered,
            () = client_left => Err(Refusal::BrokenBody),
        }
    }

    /// Asks the route's condition and middleware, then its handler.
    async fn decide(
        &self,
        asked: &Asked<'_>,
        payload: Raw,
        from_worker: PipeReader,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let route = asked.route;
        if let Some(condition) = &route.condition {
            let asking = is_met(&self.shared.engine, Some(condition), &payload, &self.trace);
            if !self.within(asking).await?.map_err(|error| failed(condition, error))? {
                return Err(Refusal::ConditionNotMet);
            }
        }
        if let Some(response) = self.pass(&route.middleware, asked).await? {
            return Ok(response);
        }
        self.within(self.handle(route, payload, from_worker)).await?
    }

    /// Asks one middleware after the other; the first that answers is the last.
    async fn pass(&self, functions: &[String], asked: &Asked<'_>) -> Result<Option<Response<ResponseBody>>, Refusal> {
        if functions.is_empty() {
            return Ok(None);
        }
        let payload = asked.for_middleware().map_err(unwritten)?;
        for function_id in functions {
            let asking = self.call(function_id, payload.clone());
            let too_slow = |_| Refusal::MiddlewareTooSlow(function_id.clone());
            let said = timeout_at(self.deadline, asking).await.map_err(too_slow)?;
            let said = said.map_err(|error| failed(function_id, error))?;
            let verdict = said.and_then(|said| serde_json::from_str::<Verdict>(said.get()).ok());
            if let Some(verdict) = verdict.filter(|verdict| verdict.action == "respond") {
                let value = verdict.response.unwrap_or_else(|| RawValue::NULL.to_owned());
                return answer::read(function_id, &self.parts.method, &value).map(Some);
            }
        }
        Ok(None)
    }

    /// The body, if it is to be parsed.
    async fn read_json(&mut self) -> Result<Option<Bytes>, Refusal> {
        let deadline = self.deadline;
        match &mut self.body {
            Some(body) if !body.is_end_stream() && payload::is_json(&self.parts.headers) => {
                let whole = timeout_at(deadline, upload::read_whole(body)).await.map_err(|_| Refusal::TooSlow)??;
                Ok(Some(whole))
            }
            _ => Ok(None),
        }
    }

    /// Calls the handler. What comes first is the answer: its value, or what it writes into the channel.
    async fn handle(
        &self,
        route: &Route,
        payload: Raw,
        mut channel: PipeReader,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let mut call = Some(self.call(&route.function_id, payload));
        let mut open = true;
        let mut head = Head::default();
        loop {
            tokio::select! {
                biased;
                item = channel.next(), if open => match item {
                    Some(Item::Text(text)) => head.follow(&text),
                    Some(Item::Binary(first)) => return Ok(head.with_body(first, channel, call)),
                    None if head.begun && channel.is_whole() => return Ok(head.without_body(&self.parts.method)),
                    None => open = false,
                },
                answer = returned(&mut call), if call.is_some() => {
                    call = None;
                    let answer = answer.map_err(|error| failed(&route.function_id, error))?;
                    if let Some(value) = answer.filter(|value| value.get() != "null") {
                        return answer::read(&route.function_id, &self.parts.method, &value);
                    }
                }
            }
            if !open && call.is_none() {
                // It has ended its answer without a word, or could not end it.
                return if channel.is_whole() {
                    Ok(head.without_body(&self.parts.method))
                } else {
                    Err(broken_off(route))
                };
            }
        }
    }

    fn call(&self, function_id: &str, data: Raw) -> BoxFuture<'static, Answer> {
        self.shared.engine.call(Invocation { function_id: function_id.to_owned(), data, trace: self.trace.clone() })
    }

    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Refusal> {
        timeout_at(self.deadline, work).await.map_err(|_| Refusal::TooSlow)
    }
}

async fn returned(call: &mut Option<BoxFuture<'static, Answer>>) -> Answer {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

fn options(methods: &[Method]) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(""));
    response.headers_mut().insert(ALLOW, headers::allow(methods));
    response
}

fn failed(function_id: &str, error: ErrorBody) -> Refusal {
    Refusal::Failed { function_id: function_id.to_owned(), error }
}

fn broken_off(route: &Route) -> Refusal {
    Refusal::Internal(format!("`{}` broke off its answer before it began", route.function_id))
}

fn unwritten(error: serde_json::Error) -> Refusal {
    Refusal::Internal(format!("the request could not be written down: {error}"))
}
