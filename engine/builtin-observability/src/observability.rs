//! The worker: what it starts, what settings change, what ends with it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine_builtin::{
    Binding, BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, Invocation, RegisterFunction,
    RegisterTriggerType, Reply, Trace, encode,
};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{changes, fired};
use crate::alert::{Action, Raised};
use crate::export::{Batching, Exporter, Logs, Metrics, Roots, Traces, Transport, host_roots, http_client, post_json};
use crate::id::{SpanId, TraceId, traceparent};
use crate::ingest::{Frame, IngestError};
use crate::prometheus_server::{Page, PrometheusServer};
use crate::settings::{Environment, Exporter as Where, Format, OwnedEnvironment, Settings};
use crate::span::Span;
use crate::state::{State, lock};
use crate::time;
use crate::triggers::{self, handlers};

pub const NAME: &str = "iii-observability";

/// How long what happens to traces is gathered before anyone is told.
const TICK: Duration = Duration::from_millis(300);

/// How often the engine's counts are written down, alerts looked at and what is old dropped.
const SAMPLE: Duration = Duration::from_secs(10);

const SPAN_BATCHING: Batching = Batching { items: 512, interval: Duration::from_secs(1) };
const METRIC_BATCHING: Batching = Batching { items: 512, interval: Duration::from_secs(5) };

/// Of live feeds: for the answer to each event, and events at a time.
const FEED_TIMEOUT: Duration = Duration::from_secs(5);
const FEED_CALLS: usize = 16;

/// Traces shown live in one tick.
const FEED_TRACES: usize = 256;

const ALERT_TIMEOUT: Duration = Duration::from_secs(30);

const ROWS: &str = "iii:devtools:trace-rows";
const SPANS: &str = "iii:devtools:trace-spans";

/// Logs, spans and metrics of the engine and its workers.
pub struct Observability {
    state: Arc<State>,
    roots: Roots,
    environment: OwnedEnvironment,
    level: watch::Sender<String>,
    format: Format,
    exporters: Mutex<Exporters>,
    prometheus: tokio::sync::Mutex<Option<PrometheusServer>>,
    address: Mutex<Option<SocketAddr>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Exporters {
    spans: Option<Arc<Exporter<Traces>>>,
    metrics: Option<Arc<Exporter<Metrics>>>,
    logs: Option<Arc<Exporter<Logs>>>,
}

/// Opens the worker; exporters begin at once, listeners and tasks with `start`.
///
/// # Errors
/// A setting that cannot be used.
pub async fn create(engine: Engine, settings: Value) -> Result<Arc<Observability>, BuiltinError> {
    Observability::open(engine, settings, |name| std::env::var(name).ok(), host_roots)
}

impl Observability {
    pub(crate) fn open(
        engine: Engine,
        settings: Value,
        environment: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        roots: Roots,
    ) -> Result<Arc<Self>, BuiltinError> {
        let settings = parse(settings, &environment)?;
        let (level, format) = (watch::Sender::new(settings.level.clone()), settings.format);
        let state = Arc::new(State::new(engine, settings.clone(), time::now()));
        let mut exporters = Exporters::default();
        if settings.enabled && settings.exporter.sends() {
            let transport = Transport::new(&settings.target, roots);
            exporters.spans = Some(Arc::new(Exporter::start(transport, SPAN_BATCHING)));
        }
        if settings.enabled && settings.metrics_enabled && settings.metrics_exporter == Where::Otlp {
            let transport = Transport::new(&settings.target, roots);
            exporters.metrics = Some(Arc::new(Exporter::start(transport, METRIC_BATCHING)));
        }
        exporters.logs = logs_exporter(&settings, roots);
        state.send_to(|queues| {
            queues.spans = exporters.spans.as_ref().map(|exporter| Arc::clone(exporter.queue()));
            queues.metrics = exporters.metrics.as_ref().map(|exporter| Arc::clone(exporter.queue()));
            queues.logs = exporters.logs.as_ref().map(|exporter| Arc::clone(exporter.queue()));
        });
        Ok(Arc::new(Self {
            state,
            roots,
            environment: Box::new(environment),
            level,
            format,
            exporters: Mutex::new(exporters),
            prometheus: tokio::sync::Mutex::new(None),
            address: Mutex::new(None),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Takes a binary frame of a worker: four letters and JSON. Never waits.
    ///
    /// # Errors
    /// It was not taken. One that cannot be read later is counted, and said at `debug`.
    pub fn ingest(&self, frame: &[u8]) -> Result<(), IngestError> {
        self.state.frames.push(frame)
    }

    /// Takes a span of the engine's own; whatever its resource, it becomes the engine's.
    pub fn record_span(&self, mut span: Span) {
        span.resource = Arc::clone(&self.state.resource);
        self.state.span(time::now(), span);
    }

    /// A worker's gauges of the last two minutes, as `engine::workers::info` shows them.
    #[must_use]
    pub fn latest_metrics(&self, worker_id: &str) -> Option<Value> {
        self.state.metrics().worker_gauges(time::now(), worker_id)
    }

    /// What the engine is to log: a filter directive, now and whenever it changes.
    #[must_use]
    pub fn level(&self) -> watch::Receiver<String> {
        self.level.subscribe()
    }

    /// How the engine is to log.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where Prometheus finds us; none before `start`, or where the address was taken.
    #[must_use]
    pub fn prometheus_address(&self) -> Option<SocketAddr> {
        *lock(&self.address)
    }

    #[cfg(test)]
    pub(crate) fn state_for_tests(&self) -> &State {
        &self.state
    }

    /// Listens where the settings say, unless it does; an address that cannot be had is a warning, what listened before
    /// stays, and the next settings try again.
    async fn listen(&self, settings: &Settings) {
        let mut server = self.prometheus.lock().await;
        let wanted = settings.prometheus.filter(|_| settings.enabled);
        if server.as_ref().map(PrometheusServer::asked) == wanted {
            return;
        }
        match wanted {
            Some(address) => self.move_to(address, &mut server).await,
            None => replace(&mut server, None).await,
        }
        *lock(&self.address) = server.as_ref().map(PrometheusServer::address);
    }

    /// Binds the new address before the old one is left. On one port that may be impossible, `0.0.0.0` holds it for every
    /// host: then the old one is left for a moment, and taken again if the new one fails.
    async fn move_to(&self, address: SocketAddr, server: &mut Option<PrometheusServer>) {
        let old = server.as_ref().map(PrometheusServer::address);
        let error = match self.bind_prometheus(address).await {
            Ok(next) => return replace(server, Some(next)).await,
            Err(error) => error,
        };
        let in_our_way = error.kind() == io::ErrorKind::AddrInUse;
        let Some(old) = old.filter(|old| in_our_way && old.port() == address.port()) else {
            return tracing::warn!(%address, %error, "Prometheus endpoint cannot listen");
        };
        replace(server, None).await;
        match self.bind_prometheus(address).await {
            Ok(next) => *server = Some(next),
            Err(error) => {
                tracing::warn!(%address, %error, "Prometheus endpoint cannot listen");
                match self.bind_prometheus(old).await {
                    Ok(again) => *server = Some(again),
                    Err(error) => tracing::warn!(address = %old, %error, "Prometheus endpoint cannot listen again"),
                }
            }
        }
    }

    async fn bind_prometheus(&self, address: SocketAddr) -> io::Result<PrometheusServer> {
        let state = Arc::clone(&self.state);
        let page: Page = Arc::new(move || state.prometheus_page());
        PrometheusServer::bind(address, page).await
    }

    fn raise(&self, raised: Vec<Raised>) {
        for raised in raised {
            let (state, roots) = (Arc::clone(&self.state), self.roots);
            let acting = async move { act(&state, raised, roots).await };
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(acting));
        }
    }

    async fn take_settings(&self, value: Value) -> Result<(), BuiltinError> {
        let before = self.state.settings();
        let settings = keep_until_restart(parse(value, &*self.environment)?, &before);
        self.level.send_if_modified(|level| {
            let changed = *level != settings.level;
            level.clone_from(&settings.level);
            changed
        });
        let batching = |settings: &Settings| {
            (settings.logs_exporter, settings.logs_enabled, settings.logs_batch_size, settings.logs_flush_interval_ms)
        };
        let new_logs = batching(&settings) != batching(&before);
        self.state.apply(time::now(), settings.clone());
        if new_logs {
            let next = logs_exporter(&settings, self.roots);
            let queue = next.as_ref().map(|exporter| Arc::clone(exporter.queue()));
            self.state.send_to(|queues| queues.logs = queue);
            let old = std::mem::replace(&mut lock(&self.exporters).logs, next);
            if let Some(old) = old {
                old.stop().await;
                self.state.count_dropped(old.queue().dropped());
            }
        }
        self.listen(&settings).await;
        Ok(())
    }
}

async fn replace(server: &mut Option<PrometheusServer>, next: Option<PrometheusServer>) {
    if let Some(old) = std::mem::replace(server, next) {
        old.stop().await;
    }
}

fn parse(value: Value, environment: Environment<'_>) -> Result<Settings, BuiltinError> {
    Settings::parse(value, environment).map_err(|error| BuiltinError::Settings(error.to_string()))
}

/// What is only read at start stays as it was.
fn keep_until_restart(settings: Settings, before: &Settings) -> Settings {
    let kept = Settings {
        enabled: before.enabled,
        exporter: before.exporter,
        target: before.target.clone(),
        logs_target: before.logs_target.clone(),
        service: before.service.clone(),
        format: before.format,
        metrics_enabled: before.metrics_enabled,
        metrics_exporter: before.metrics_exporter,
        metrics_retention_seconds: before.metrics_retention_seconds,
        metrics_max_count: before.metrics_max_count,
        ..settings.clone()
    };
    if kept != settings {
        tracing::warn!("some changed settings of {NAME} are only read at start");
    }
    kept
}

fn logs_exporter(settings: &Settings, roots: Roots) -> Option<Arc<Exporter<Logs>>> {
    let sends = settings.enabled && settings.logs_enabled && settings.logs_exporter.sends();
    sends.then(|| {
        let interval = Duration::from_millis(settings.logs_flush_interval_ms);
        let batching = Batching { items: settings.logs_batch_size, interval };
        Arc::new(Exporter::start(Transport::new(&settings.logs_target, roots), batching))
    })
}

impl Builtin for Observability {
    fn name(&self) -> &'static str {
        NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        crate::functions::registrations()
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        let of = |id: &str, description: &str, properties: Value| RegisterTriggerType {
            id: id.to_owned(),
            description: Some(description.to_owned()),
            trigger_request_format: serde_json::value::to_raw_value(&json!({
                "type": "object", "properties": properties,
            }))
            .ok(),
            call_request_format: None,
        };
        vec![
            of(
                triggers::LOG,
                "Fires for each log record.",
                json!({
                    "level": {"enum": ["all", "debug", "info", "warn", "error"], "default": "all"},
                }),
            ),
            of(
                triggers::TRACE,
                "Fires when spans of traces have arrived.",
                json!({
                    "service_name": {"type": "string"},
                    "status": {"enum": ["ok", "error", "unset"]},
                }),
            ),
        ]
    }

    fn call(&self, call: Call) -> Reply {
        if call.function_id != "engine::alerts::evaluate" {
            return Reply::Now(self.state.answer(&call));
        }
        let raised = self.state.sample(time::now());
        let answer = json!({
            "evaluated": self.state.alerts().rules().filter(|alert| alert.enabled).count(),
            "triggered_alerts": raised.iter().map(Raised::json).collect::<Vec<_>>(),
            "timestamp": time::nanos_to_millis(time::now()),
        });
        self.raise(raised);
        Reply::Now(encode(&answer))
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        self.state.triggers.bind(binding)
    }

    fn unbind(&self, trigger_type: &str, id: &str) {
        self.state.triggers.unbind(trigger_type, id);
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async {
            if let Some(frames) = self.state.frames.receiver() {
                self.tasks.spawn(read_frames(Arc::clone(&self.state), frames, self.stop.clone()));
                self.tasks.spawn(tell(Arc::clone(&self.state), self.stop.clone()));
                self.tasks.spawn(sample(Arc::clone(&self.state), self.roots, self.stop.clone()));
            }
            self.listen(&self.state.settings()).await;
            Ok(())
        }
        .boxed()
    }

    fn apply(&self, settings: Value) -> BoxFuture<'_, Result<(), BuiltinError>> {
        self.take_settings(settings).boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            self.stop.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            self.state.triggers.stop();
            if let Some(server) = self.prometheus.lock().await.take() {
                server.stop().await;
            }
            let Exporters { spans, metrics, logs } = std::mem::take(&mut *lock(&self.exporters));
            tokio::join!(
                async {
                    if let Some(exporter) = spans {
                        exporter.stop().await;
                    }
                },
                async {
                    if let Some(exporter) = metrics {
                        exporter.stop().await;
                    }
                },
                async {
                    if let Some(exporter) = logs {
                        exporter.stop().await;
                    }
                },
            );
        }
        .boxed()
    }
}

/// Reads frames until the end, and then those that have already arrived.
async fn read_frames(state: Arc<State>, mut frames: mpsc::Receiver<Frame>, stop: CancellationToken) {
    loop {
        // Cancel safe: a frame that is not taken stays in the queue.
        let frame = tokio::select! {
            biased;
            Some(frame) = frames.recv() => frame,
            () = stop.cancelled() => return,
        };
        let now = time::now();
        match state.frames.read(frame, now).await {
            Ok(telemetry) => state.accept(now, telemetry),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::debug!(%error, cause, "telemetry frame dropped");
            }
        }
    }
}

/// Tells triggers and live views what happened to traces.
async fn tell(state: Arc<State>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let new = state.activity().take();
        if new.is_empty() {
            continue;
        }
        fire(&state, &new);
        tokio::select! {
            () = stop.cancelled() => return,
            () = feed(&state, &new) => {}
        }
    }
}

fn fire(state: &Arc<State>, new: &[Arc<Span>]) {
    let bindings = state.triggers.traces();
    let handlers = handlers(&bindings);
    for binding in bindings {
        let traces = fired(new, &binding.filter, &handlers);
        if !traces.is_empty() {
            let ids: Vec<String> = traces.iter().map(ToString::to_string).collect();
            let activity = Arc::downgrade(state);
            let own = move |trace| {
                if let Some(state) = activity.upgrade() {
                    state.activity().own.add(trace);
                }
            };
            state.triggers.call(&state.engine, &binding.to, &json!({"trace_ids": ids}), own);
        }
    }
}

/// Sends what is new to those who watch; whether anyone does, the stream worker knows.
async fn feed(state: &Arc<State>, new: &[Arc<Span>]) {
    if !state.engine.knows("stream::send") {
        return;
    }
    let touched: std::collections::HashSet<TraceId> = new.iter().map(|span| span.trace_id).collect();
    let all: Vec<Arc<Span>> = match state.spans() {
        Some(spans) => spans.iter().filter(|span| touched.contains(&span.trace_id)).map(Arc::clone).collect(),
        None => return,
    };
    let changed = changes(all.into_iter(), new, &state.settings().collapse);
    let rows: Vec<Value> = changed
        .values()
        .flatten()
        .filter(|seen| seen.parent.is_none() && !seen.span.is_internal())
        .map(|seen| Value::Object(seen.span.json(None)))
        .collect();
    let mut events: Vec<(&'static str, String, Vec<Value>)> = Vec::new();
    if !rows.is_empty() {
        events.push((ROWS, "all".to_owned(), rows));
    }
    for (trace, seen) in changed.into_iter().take(FEED_TRACES) {
        let spans = seen.iter().map(|seen| Value::Object(seen.span.json(seen.parent))).collect();
        events.push((SPANS, trace.to_string(), spans));
    }
    let mut sent = Vec::new();
    for (stream, group, spans) in events {
        sent.push(send(Arc::clone(state), stream, group, spans));
    }
    futures_util::stream::iter(sent).buffer_unordered(FEED_CALLS).for_each(|()| std::future::ready(())).await;
}

async fn send(state: Arc<State>, stream: &'static str, group: String, spans: Vec<Value>) {
    let payload = json!({"stream_name": stream, "group_id": group, "type": "spans", "data": {"spans": spans}});
    // Strings and numbers: there is nothing in it that cannot be written.
    let Ok(data) = serde_json::value::to_raw_value(&payload) else { return };
    // In a trace of our own, should a worker stand in for the stream: its spans are not shown in turn.
    let trace = TraceId::random();
    state.activity().own.add(trace);
    let trace = Trace { traceparent: Some(traceparent(trace, SpanId::random())), baggage: None };
    let call = state.engine.call(Invocation { function_id: "stream::send".to_owned(), data, trace });
    match tokio::time::timeout(FEED_TIMEOUT, call).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "live feed failed"),
        Err(_) => tracing::debug!("live feed was not taken in time"),
    }
}

async fn sample(state: Arc<State>, roots: Roots, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut actions = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = actions.join_next() => continue,
            _ = ticks.tick() => {}
        }
        let now = time::now();
        state.expire(now);
        for raised in state.sample(now) {
            let state = Arc::clone(&state);
            actions.spawn(async move { act(&state, raised, roots).await });
        }
    }
}

async fn act(state: &State, raised: Raised, roots: Roots) {
    let alert = &raised.alert;
    tracing::warn!(
        alert = alert.name,
        metric = alert.metric,
        value = raised.value,
        threshold = alert.threshold,
        "alert"
    );
    let done = match &alert.action {
        Action::Log => Ok(()),
        Action::Webhook(url) => post_json(&http_client(url, roots), url, &raised.json()).await,
        Action::Function(path) => match serde_json::value::to_raw_value(&raised.json()) {
            Ok(data) => {
                let invocation = Invocation { function_id: path.clone(), data, trace: Trace::default() };
                match tokio::time::timeout(ALERT_TIMEOUT, state.engine.call(invocation)).await {
                    Ok(answer) => answer.map(|_| ()).map_err(|error| error.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                }
            }
            Err(error) => Err(error.to_string()),
        },
    };
    if let Err(why) = done {
        tracing::warn!(alert = alert.name, why, "alert's action failed");
    }
}
