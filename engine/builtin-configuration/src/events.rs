//! Who is told of changes: functions bound to the `configuration` trigger type.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_builtin::{Binding, Engine, ErrorBody, Invocation, LogLimit, Trace, is_met};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::entry::{Entry, expand};

/// The kinds of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Change {
    #[serde(rename = "configuration:registered")]
    Registered,
    #[serde(rename = "configuration:updated")]
    Updated,
    #[serde(rename = "configuration:deleted")]
    Deleted,
}

impl Change {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Registered => "configuration:registered",
            Self::Updated => "configuration:updated",
            Self::Deleted => "configuration:deleted",
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Filter {
    configuration_id: Option<String>,
    event_types: Option<Vec<Change>>,
    condition_function_id: Option<String>,
}

#[derive(Debug, Clone)]
struct Bound {
    function_id: String,
    filter: Filter,
}

/// How long a function may take before the next one is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Events that are being told at once.
const MAX_EVENTS: usize = 256;

/// Bindings by their id.
pub(crate) struct Bindings {
    bound: Mutex<BTreeMap<String, Bound>>,
    turns: Arc<Semaphore>,
    log: LogLimit,
}

impl Bindings {
    /// Must be called inside a runtime.
    pub(crate) fn new() -> Self {
        let turns = Arc::new(Semaphore::new(MAX_EVENTS));
        Self { bound: Mutex::default(), turns, log: LogLimit::new(crate::NAME) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `trigger_registration_failed`: the configuration does not fit.
    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let filter: Option<Filter> = serde_json::from_value(binding.config)
            .map_err(|error| ErrorBody::new("trigger_registration_failed", format!("configuration: {error}")))?;
        let bound = Bound { function_id: binding.function_id, filter: filter.unwrap_or_default() };
        self.lock().insert(binding.id, bound);
        Ok(())
    }

    /// Returns the entry whose last own binding this was.
    pub(crate) fn unbind(&self, id: &str) -> Option<String> {
        let mut bindings = self.lock();
        let entry = bindings.remove(id)?.filter.configuration_id?;
        let still = bindings.values().any(|bound| bound.filter.configuration_id.as_ref() == Some(&entry));
        (!still).then_some(entry)
    }

    pub(crate) fn has_own(&self, entry: &str) -> bool {
        self.lock().values().any(|bound| bound.filter.configuration_id.as_deref() == Some(entry))
    }

    fn of(&self, change: Change, entry: &str) -> Vec<Bound> {
        let fits = |bound: &&Bound| {
            let Filter { configuration_id, event_types, .. } = &bound.filter;
            configuration_id.as_deref().is_none_or(|id| id.is_empty() || id == entry)
                && event_types.as_ref().is_none_or(|types| types.is_empty() || types.contains(&change))
        };
        self.lock().values().filter(fits).cloned().collect()
    }

    /// Calls whoever is bound, one after another, in a task of its own.
    pub(crate) fn fire(&self, engine: &Engine, change: Change, entry: &Entry, old: &Value, new: &Value, trace: Trace) {
        let bound = self.of(change, &entry.id);
        let Ok(Some(data)) = engine_builtin::encode(&payload(change, entry, old, new)) else { return };
        if bound.is_empty() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() else {
            let id = &entry.id;
            self.log.log(|| warn!(id, "too many functions are being told of changes, these are not"));
            return;
        };
        let (engine, log) = (engine.clone(), self.log.clone());
        tokio::spawn(async move {
            let _turn = turn;
            for Bound { function_id, filter } in bound {
                let condition = filter.condition_function_id.as_deref();
                let asking = is_met(&engine, condition, &data, &trace);
                let slow = |_| Err(ErrorBody::new("TIMEOUT", "it does not answer"));
                match tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(slow) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => {
                        log.log(|| warn!(condition, %error, "a condition failed, its function is not called"));
                        continue;
                    }
                }
                let invocation =
                    Invocation { function_id: function_id.clone(), data: data.clone(), trace: trace.clone() };
                let function = function_id;
                match tokio::time::timeout(PATIENCE, engine.call(invocation)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        log.log(|| warn!(function, %error, "a function bound to `configuration` failed"));
                    }
                    Err(_) => log.log(|| warn!(function, "a function bound to `configuration` does not answer")),
                }
            }
        });
    }
}

fn payload(change: Change, entry: &Entry, old: &Value, new: &Value) -> Value {
    let variable = |name: &str| std::env::var(name).ok();
    let mut payload = json!({
        "type": "configuration", "event_type": change.name(), "id": entry.id, "name": entry.name,
        "description": entry.description, "schema": entry.schema,
        "old_value": expand(old, &variable), "new_value": expand(new, &variable),
    });
    if let Some(metadata) = &entry.metadata {
        payload["metadata"] = metadata.clone();
    }
    payload
}
