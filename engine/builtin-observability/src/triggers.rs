//! Bindings of the trigger types `log` and `trace`, and calling what is bound.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine_builtin::{Binding, Deliveries, Engine, ErrorBody, Invocation, Recipient, Trace};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::activity::{OwnTraces, TraceFilter};
use crate::id::{SpanId, TraceId, traceparent};
use crate::log::{Level, LogRecord};
use crate::span::Status;

pub(crate) const LOG: &str = "log";
pub(crate) const TRACE: &str = "trace";

const HANDLER_TIMEOUT: Duration = Duration::from_secs(60);

/// One function, and the logs it wants; `None` is all.
struct LogBinding {
    to: Recipient,
    level: Option<Level>,
}

#[derive(Clone)]
pub(crate) struct TraceBinding {
    pub(crate) to: Recipient,
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
    own: Arc<Mutex<OwnTraces>>,
    deliveries: Deliveries,
    stop: CancellationToken,
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
    /// Must be called inside a runtime.
    pub(crate) fn new() -> Self {
        Self {
            bindings: Mutex::default(),
            own: Arc::default(),
            deliveries: Deliveries::new(),
            stop: CancellationToken::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bindings> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let refused = |message: String| ErrorBody::new("trigger_registration_failed", message);
        let to = Recipient::from(&binding);
        let config = if binding.config.is_null() { Value::Object(serde_json::Map::new()) } else { binding.config };
        match binding.trigger_type.as_str() {
            LOG => {
                let config: LogConfig = serde_json::from_value(config).map_err(|error| refused(error.to_string()))?;
                let level = match config.level.as_deref() {
                    None | Some("" | "all") => None,
                    Some(name) => Some(Level::parse(name).ok_or_else(|| refused(format!("`level` is {name}")))?),
                };
                self.lock().logs.insert(binding.id, LogBinding { to, level });
            }
            TRACE => {
                let config: TraceConfig = serde_json::from_value(config).map_err(|error| refused(error.to_string()))?;
                let status = match config.status.as_deref() {
                    None | Some("") => None,
                    Some(name) => Some(status(name).ok_or_else(|| refused(format!("`status` is {name}")))?),
                };
                let service_name = config.service_name.filter(|name| !name.is_empty());
                let filter = TraceFilter { service_name, status };
                self.lock().traces.insert(binding.id, TraceBinding { to, filter });
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
    fn of_log(&self, record: &LogRecord) -> Vec<Recipient> {
        let level = record.severity.level();
        let bindings = self.lock();
        let functions: Vec<Recipient> = bindings
            .logs
            .values()
            .filter(|binding| binding.level.is_none_or(|wanted| wanted == level))
            .map(|binding| binding.to.clone())
            .collect();
        drop(bindings);
        let by_handler = !functions.is_empty()
            && record
                .trace_id
                .as_deref()
                .and_then(TraceId::parse)
                .is_some_and(|trace| lock(&self.own).contains(&trace));
        if by_handler { Vec::new() } else { functions }
    }

    pub(crate) fn log(&self, engine: &Engine, record: &LogRecord) {
        for to in self.of_log(record) {
            let own = Arc::clone(&self.own);
            self.call(engine, &to, &record.full_json(), move |trace| lock(&own).add(trace));
        }
    }

    /// Calls a handler in a trace of its own, which `note` is given when the call begins. What is too much for all or for one of
    /// them is dropped, and the log says so.
    pub(crate) fn call(
        &self,
        engine: &Engine,
        to: &Recipient,
        payload: &Value,
        note: impl FnOnce(TraceId) + Send + 'static,
    ) {
        // A value without maps of other keys than strings can be written.
        let Ok(data) = serde_json::value::to_raw_value(payload) else { return };
        let Ok(room) = self.deliveries.room(data.get().len()) else { return };
        let (engine, function_id) = (Arc::clone(engine), to.function_id().to_owned());
        let calling = async move {
            let trace = TraceId::random();
            note(trace);
            let trace = Trace { traceparent: Some(traceparent(trace, SpanId::random())), baggage: None };
            let called = engine.call(Invocation { function_id: function_id.clone(), data, trace });
            match tokio::time::timeout(HANDLER_TIMEOUT, called).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(function_id, %error, "trigger handler failed"),
                Err(_) => tracing::debug!(function_id, "trigger handler did not answer in time"),
            }
        };
        let work = self.stop.clone().run_until_cancelled_owned(calling).map(drop);
        let _ = self.deliveries.begin(to, None, room, work.boxed());
    }

    /// Waits for no answer any more.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

fn lock(own: &Mutex<OwnTraces>) -> MutexGuard<'_, OwnTraces> {
    own.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(name: &str) -> Option<Status> {
    [Status::Ok, Status::Error, Status::Unset].into_iter().find(|status| status.name().eq_ignore_ascii_case(name))
}

/// The functions that `trace` triggers call.
pub(crate) fn handlers(bindings: &[TraceBinding]) -> HashSet<String> {
    bindings.iter().map(|binding| binding.to.function_id().to_owned()).collect()
}
