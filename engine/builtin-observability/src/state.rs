//! What this worker holds, and what becomes of telemetry that arrives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use engine_builtin::Engine;

use crate::activity::Activity;
use crate::alert::{Alerts, Raised};
use crate::attribute::{AttributeValue, Resource};
use crate::engine_metrics;
use crate::export::Queue;
use crate::id::TraceId;
use crate::ingest::{Frames, Telemetry};
use crate::log::{Level, LogRecord};
use crate::metric::Metric;
use crate::metric_store::MetricStore;
use crate::prometheus::{self, OwnCounts};
use crate::ring::Ring;
use crate::sampling::{Ratio, Sampler};
use crate::settings::{Service, Settings};
use crate::span::Span;
use crate::time::NANOS_PER_SECOND;
use crate::triggers::Triggers;

/// The engine's own samples: seven names every ten seconds, for a little more than an hour.
const ENGINE_SAMPLES: usize = 7 * 400;
const ENGINE_RETENTION_NANOS: u64 = 4000 * NANOS_PER_SECOND;

/// Where telemetry is sent on; what is not sent has no queue.
#[derive(Clone, Default)]
pub(crate) struct Queues {
    pub(crate) spans: Option<Arc<Queue<Span>>>,
    pub(crate) metrics: Option<Arc<Queue<Metric>>>,
    pub(crate) logs: Option<Arc<Queue<LogRecord>>>,
}

pub(crate) struct State {
    /// Called with none of the locks below held: it calls us under its own.
    pub(crate) engine: Engine,
    settings: RwLock<Arc<Settings>>,
    /// Who the engine is in its own telemetry.
    pub(crate) resource: Arc<Resource>,
    started_unix_nano: u64,
    pub(crate) frames: Frames,
    spans: Option<Mutex<Ring<Span>>>,
    logs: Mutex<Ring<LogRecord>>,
    metrics: Mutex<MetricStore>,
    engine_samples: Mutex<MetricStore>,
    sampler: Mutex<Sampler>,
    alerts: Mutex<Alerts>,
    activity: Mutex<Activity>,
    pub(crate) triggers: Triggers,
    queues: RwLock<Queues>,
    /// Of exporters that have been replaced.
    dropped_before: AtomicU64,
}

/// No lock is held where anything could panic half way through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn new(engine: Engine, settings: Settings, now_unix_nano: u64) -> Self {
        let mut alerts = Alerts::default();
        alerts.replace(&settings.alerts);
        let keeps_spans = settings.enabled && settings.exporter.keeps();
        Self {
            engine,
            resource: Arc::new(resource(&settings.service)),
            started_unix_nano: now_unix_nano,
            frames: Frames::new(),
            spans: keeps_spans.then(|| Mutex::new(Ring::new(settings.memory_max_spans, None))),
            logs: Mutex::new(Ring::new(settings.logs_max_count, Some(seconds(settings.logs_retention_seconds)))),
            metrics: Mutex::new(MetricStore::new(
                settings.metrics_max_count,
                seconds(settings.metrics_retention_seconds),
            )),
            engine_samples: Mutex::new(MetricStore::new(ENGINE_SAMPLES, ENGINE_RETENTION_NANOS)),
            sampler: Mutex::new(Sampler::new(settings.sampling.clone())),
            alerts: Mutex::new(alerts),
            activity: Mutex::default(),
            triggers: Triggers::new(),
            queues: RwLock::default(),
            dropped_before: AtomicU64::new(0),
            settings: RwLock::new(Arc::new(settings)),
        }
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts settings into use that need no task of their own.
    pub(crate) fn apply(&self, now_unix_nano: u64, settings: Settings) {
        if lock(&self.sampler).rules() != &settings.sampling {
            *lock(&self.sampler) = Sampler::new(settings.sampling.clone());
        }
        lock(&self.alerts).replace(&settings.alerts);
        if let Some(spans) = &self.spans {
            lock(spans).bound(now_unix_nano, settings.memory_max_spans, None);
        }
        let retention = seconds(settings.logs_retention_seconds);
        lock(&self.logs).bound(now_unix_nano, settings.logs_max_count, Some(retention));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    pub(crate) fn spans(&self) -> Option<MutexGuard<'_, Ring<Span>>> {
        self.spans.as_ref().map(lock)
    }

    pub(crate) fn logs(&self) -> MutexGuard<'_, Ring<LogRecord>> {
        lock(&self.logs)
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, MetricStore> {
        lock(&self.metrics)
    }

    pub(crate) fn engine_samples(&self) -> MutexGuard<'_, MetricStore> {
        lock(&self.engine_samples)
    }

    pub(crate) fn sampler(&self) -> MutexGuard<'_, Sampler> {
        lock(&self.sampler)
    }

    pub(crate) fn alerts(&self) -> MutexGuard<'_, Alerts> {
        lock(&self.alerts)
    }

    pub(crate) fn activity(&self) -> MutexGuard<'_, Activity> {
        lock(&self.activity)
    }

    fn queues(&self) -> Queues {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn send_to(&self, change: impl FnOnce(&mut Queues)) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut queues);
    }

    /// An exporter has been replaced; what it dropped stays counted.
    pub(crate) fn count_dropped(&self, items: u64) {
        self.dropped_before.fetch_add(items, Ordering::Relaxed);
    }

    pub(crate) fn accept(&self, now_unix_nano: u64, telemetry: Telemetry) {
        match telemetry {
            Telemetry::Spans(spans) => spans.into_iter().for_each(|span| self.span(now_unix_nano, span)),
            Telemetry::Logs(logs) => logs.into_iter().for_each(|record| self.log(now_unix_nano, record)),
            Telemetry::Metrics(metrics) => {
                metrics.into_iter().for_each(|metric| self.metric(now_unix_nano, metric));
            }
        }
    }

    pub(crate) fn span(&self, now_unix_nano: u64, span: Span) {
        if !self.settings().enabled
            || !self.sampler().keeps(now_unix_nano, span.trace_id, &span.name, span.service_name())
        {
            return;
        }
        let span = Arc::new(span);
        let weight = span.weight();
        if let Some(mut spans) = self.spans() {
            spans.push(now_unix_nano, Arc::clone(&span), weight);
        }
        self.activity().note(&span);
        if let Some(queue) = self.queues().spans {
            queue.push(span, weight);
        }
    }

    pub(crate) fn log(&self, now_unix_nano: u64, record: LogRecord) {
        let settings = self.settings();
        if !(settings.enabled && settings.logs_enabled) {
            return;
        }
        // Records of one trace share its fate.
        let trace = record.trace_id.as_deref().and_then(TraceId::parse);
        let spread = || trace.unwrap_or_else(TraceId::random).spread();
        if settings.logs_sampling != Ratio::ALL && !settings.logs_sampling.keeps(spread()) {
            return;
        }
        let record = Arc::new(record.plain());
        if settings.logs_console_output {
            show(&record);
        }
        if settings.logs_exporter.keeps() {
            self.logs().push(now_unix_nano, Arc::clone(&record), record.weight());
        }
        self.triggers.log(&self.engine, &record);
        if let Some(queue) = self.queues().logs {
            let weight = record.weight();
            queue.push(record, weight);
        }
    }

    fn metric(&self, now_unix_nano: u64, metric: Metric) {
        let settings = self.settings();
        if !(settings.enabled && settings.metrics_enabled) {
            return;
        }
        let metric = Arc::new(metric);
        self.metrics().push(now_unix_nano, Arc::clone(&metric));
        self.send_metric(metric);
    }

    fn send_metric(&self, metric: Arc<Metric>) {
        if let Some(queue) = self.queues().metrics {
            let weight = metric.weight();
            queue.push(metric, weight);
        }
    }

    /// Writes down what the engine counts now, and looks at the alerts. What is to be told comes back.
    pub(crate) fn sample(&self, now_unix_nano: u64) -> Vec<Raised> {
        let settings = self.settings();
        if !(settings.enabled && settings.metrics_enabled) {
            return Vec::new();
        }
        let stats = self.engine.stats();
        for metric in engine_metrics::sampled(&stats, now_unix_nano, self.started_unix_nano, &self.resource) {
            let metric = Arc::new(metric);
            self.engine_samples().push(now_unix_nano, Arc::clone(&metric));
            self.send_metric(metric);
        }
        let engine_samples = self.engine_samples();
        let metrics = self.metrics();
        self.alerts().evaluate(now_unix_nano, |name, window| {
            engine_samples.window(now_unix_nano, name, window).or_else(|| metrics.window(now_unix_nano, name, window))
        })
    }

    /// Drops what has grown too old.
    pub(crate) fn expire(&self, now_unix_nano: u64) {
        self.logs().expire(now_unix_nano);
        self.metrics().expire(now_unix_nano);
        self.engine_samples().expire(now_unix_nano);
    }

    pub(crate) fn prometheus_page(&self) -> String {
        let (stats, version) = (self.engine.stats(), self.engine.version());
        let queues = self.queues();
        let export_dropped = queues.spans.map_or(0, |queue| queue.dropped())
            + queues.logs.map_or(0, |queue| queue.dropped())
            + queues.metrics.map_or(0, |queue| queue.dropped());
        let metrics = self.metrics();
        let own = OwnCounts {
            spans_stored: self.spans().map_or(0, |spans| spans.len() as u64),
            logs_stored: self.logs().len() as u64,
            metrics_stored: metrics.len() as u64,
            frames_dropped: self.frames.dropped(),
            frames_malformed: self.frames.malformed(),
            export_dropped: export_dropped + self.dropped_before.load(Ordering::Relaxed),
        };
        prometheus::page(version, &stats, own, &metrics.latest(prometheus::MAX_SERIES))
    }
}

fn seconds(number: u64) -> u64 {
    number.saturating_mul(NANOS_PER_SECOND)
}

fn resource(service: &Service) -> Resource {
    let named = [
        ("service.name", Some(&service.name)),
        ("service.version", Some(&service.version)),
        ("service.namespace", service.namespace.as_ref()),
    ];
    let attribute = |(key, value): (&str, Option<&String>)| {
        value.map(|value| (key.to_owned(), AttributeValue::Text(value.clone())))
    };
    Resource { service_name: service.name.clone(), attributes: named.into_iter().filter_map(attribute).collect() }
}

/// A worker's log in the engine's own.
fn show(record: &LogRecord) {
    let service = &record.resource.service_name;
    let body = &record.body;
    let trace_id = record.trace_id.as_deref();
    match record.severity.level() {
        Level::Trace => tracing::trace!(target: "iii::log", service, trace_id, "{body}"),
        Level::Debug => tracing::debug!(target: "iii::log", service, trace_id, "{body}"),
        Level::Info => tracing::info!(target: "iii::log", service, trace_id, "{body}"),
        Level::Warn => tracing::warn!(target: "iii::log", service, trace_id, "{body}"),
        Level::Error => tracing::error!(target: "iii::log", service, trace_id, "{body}"),
    }
}
