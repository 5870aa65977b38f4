//! Bindings of the trigger types `log` and `trace`, and calling what is bound.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine_builtin::{Binding, Engine, ErrorBody, Invocation, Trace};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{OwnTraces, TraceFilter};
use crate::id::{SpanId, TraceId, traceparent};
use crate::log::{Level, LogRecord};
use crate::span::Status;

pub(crate) const LOG: &str = "log";
pub(crate) const TRACE: &str = "trace";

/// Handlers that run at a time; events beyond are dropped.
const MAX_RUNNING: usize = 256;

const HANDLER_TIMEOUT: Duration = Duration::from_secs(60);

/// One function, and the logs it wants; `None` is all.
struct LogBinding {
    function_id: String,
    level: Option<Level>,
}

#[derive(Clone)]
pub(crate) struct TraceBinding {
    pub(crate) function_id: String,
    pub(crate) filter: TraceFilter,
}

#[derive(Default)]
struct Bindings {
    logs: BTreeMap<String, LogBinding>,
    traces: BTreeMap<String, TraceBinding>,
}

/// Who is told, and of what.
pub(crate) struct Triggers {
    bindings: Mutex<Bindings>,
    /// Traces that handlers of logs run in: what they log tells nobody.
    own: Mutex<OwnTraces>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
    running: TaskTracker,
}

#[derive(Deserialize)]
struct LogConfig {
    level: Option<String>,
}

#[derive(Deserialize)]
struct TraceConfig {
    service_name: Option<String>,
    status: Option<String>,
}

impl Triggers {
    pub(crate) fn new() -> Self {
        Self {
            bindings: Mutex::default(),
            own: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_RUNNING)),
            stop: CancellationToken::new(),
            running: TaskTracker::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bindings> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let refused = |message: String| ErrorBody::new("trigger_registration_failed", message);
        let config = if binding.config.is_null() { Value::Object(serde_json::Map::new()) } else { binding.config };
        let function_id = binding.function_id;
        match binding.trigger_type.as_str() {
            LOG => {
                let config: LogConfig = serde_json::from_value(config).map_err(|error| refused(error.to_string()))?;
                let level = match config.level.as_deref() {
                    None | Some("" | "all") => None,
                    Some(name) => Some(Level::parse(name).ok_or_else(|| refused(format!("`level` is {name}")))?),
                };
                self.lock().logs.insert(binding.id, LogBinding { function_id, level });
            }
            TRACE => {
                let config: TraceConfig = serde_json::from_value(config).map_err(|error| refused(error.to_string()))?;
                let status = match config.status.as_deref() {
                    None | Some("") => None,
                    Some(name) => Some(status(name).ok_or_else(|| refused(format!("`status` is {name}")))?),
                };
                let service_name = config.service_name.filter(|name| !name.is_empty());
                let filter = TraceFilter { service_name, status };
                self.lock().traces.insert(binding.id, TraceBinding { function_id, filter });
            }
            other => return Err(refused(format!("trigger type `{other}` is not one of ours"))),
        }
        Ok(())
    }

    pub(crate) fn unbind(&self, trigger_type: &str, id: &str) {
        let mut bindings = self.lock();
        match trigger_type {
            LOG => drop(bindings.logs.remove(id)),
            TRACE => drop(bindings.traces.remove(id)),
            _ => {}
        }
    }

    pub(crate) fn traces(&self) -> Vec<TraceBinding> {
        self.lock().traces.values().cloned().collect()
    }

    /// The functions that want this record; none of them when a handler wrote it.
    fn of_log(&self, record: &LogRecord) -> Vec<String> {
        let level = record.severity.level();
        let bindings = self.lock();
        let functions: Vec<String> = bindings
            .logs
            .values()
            .filter(|binding| binding.level.is_none_or(|wanted| wanted == level))
            .map(|binding| binding.function_id.clone())
            .collect();
        drop(bindings);
        let by_handler = !functions.is_empty()
            && record
                .trace_id
                .as_deref()
                .and_then(TraceId::parse)
                .is_some_and(|trace| self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(&trace));
        if by_handler { Vec::new() } else { functions }
    }

    pub(crate) fn log(&self, engine: &Engine, record: &LogRecord) {
        for function_id in self.of_log(record) {
            let trace = TraceId::random();
            self.own.lock().unwrap_or_else(PoisonError::into_inner).add(trace);
            self.call(engine, function_id, &record.full_json(), trace);
        }
    }

    /// Calls a handler in a trace of its own.
    pub(crate) fn call(&self, engine: &Engine, function_id: String, payload: &Value, trace: TraceId) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::debug!(function_id, "too many trigger handlers run; event dropped");
            return;
        };
        // A value without maps of other keys than strings can be written.
        let Ok(data) = serde_json::value::to_raw_value(payload) else { return };
        let trace = Trace { traceparent: Some(traceparent(trace, SpanId::random())), baggage: None };
        let (engine, stop) = (Arc::clone(engine), self.stop.clone());
        self.running.spawn(stop.run_until_cancelled_owned(async move {
            let called = engine.call(Invocation { function_id: function_id.clone(), data, trace });
            match tokio::time::timeout(HANDLER_TIMEOUT, called).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(function_id, %error, "trigger handler failed"),
                Err(_) => tracing::debug!(function_id, "trigger handler did not answer in time"),
            }
            drop(room);
        }));
    }

    /// Waits for no answer any more.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

fn status(name: &str) -> Option<Status> {
    [Status::Ok, Status::Error, Status::Unset].into_iter().find(|status| status.name().eq_ignore_ascii_case(name))
}

/// The functions that `trace` triggers call.
pub(crate) fn handlers(bindings: &[TraceBinding]) -> HashSet<String> {
    bindings.iter().map(|binding| binding.function_id.clone()).collect()
}
