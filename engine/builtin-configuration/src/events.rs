//! Who is told of changes: functions bound to the `configuration` trigger type.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine_builtin::{Binding, Deliveries, Engine, ErrorBody, Event, LogLimit, Recipient, Standing, Trace};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value, json};

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

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Filter {
    configuration_id: Option<String>,
    event_types: Option<Vec<Change>>,
    condition_function_id: Option<String>,
}

#[derive(Debug)]
struct Bound {
    to: Recipient,
    filter: Filter,
    standing: Standing,
}

/// Bindings by their id.
pub(crate) struct Bindings {
    bound: Mutex<BTreeMap<String, Arc<Bound>>>,
    deliveries: Deliveries,
    log: LogLimit,
}

impl Bindings {
    /// Must be called inside a runtime.
    pub(crate) fn new() -> Self {
        Self { bound: Mutex::default(), deliveries: Deliveries::new(), log: LogLimit::new(crate::NAME) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Bound>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `trigger_registration_failed`: the configuration does not fit.
    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let to = Recipient::from(&binding);
        let filter: Option<Filter> = serde_json::from_value(binding.config)
            .map_err(|error| ErrorBody::new("trigger_registration_failed", format!("configuration: {error}")))?;
        let mut bindings = self.lock();
        let standing = bindings.get(&binding.id).map(|before| before.standing.clone()).unwrap_or_default();
        let bound = Bound { to, filter: filter.unwrap_or_default(), standing };
        bindings.insert(binding.id, Arc::new(bound));
        Ok(())
    }

    /// Returns the entry whose last own binding this was.
    pub(crate) fn unbind(&self, id: &str) -> Option<String> {
        let mut bindings = self.lock();
        let gone = bindings.remove(id)?;
        gone.standing.end();
        let entry = gone.filter.configuration_id.clone()?;
        let still = bindings.values().any(|bound| bound.filter.configuration_id.as_ref() == Some(&entry));
        (!still).then_some(entry)
    }

    pub(crate) fn has_own(&self, entry: &str) -> bool {
        self.lock().values().any(|bound| bound.filter.configuration_id.as_deref() == Some(entry))
    }

    fn of(&self, change: Change, entry: &str) -> Vec<Arc<Bound>> {
        let fits = |bound: &&Arc<Bound>| {
            let Filter { configuration_id, event_types, .. } = &bound.filter;
            configuration_id.as_deref().is_none_or(|id| id.is_empty() || id == entry)
                && event_types.as_ref().is_none_or(|types| types.is_empty() || types.contains(&change))
        };
        self.lock().values().filter(fits).cloned().collect()
    }

    /// Hands a change to whoever is bound, behind those of the same entry: in the order of the changes. Never waits; what
    /// is too much for all or for one of them is dropped, and the log says so. A binding that has gone by its turn is not
    /// called any more.
    pub(crate) fn fire(&self, engine: &Engine, change: Change, entry: &Entry, old: &Value, new: &Value, trace: &Trace) {
        let bound = self.of(change, &entry.id);
        if bound.is_empty() {
            return;
        }
        let Ok(Some(data)) = engine_builtin::encode(&payload(change, entry, old, new)) else { return };
        let Ok(room) = self.deliveries.room(data.get().len() + trace.bytes()) else { return };
        let data = Arc::new(data);
        for bound in bound {
            let (engine, data, trace) = (Arc::clone(engine), Arc::clone(&data), trace.clone());
            let log = self.log.clone();
            let told = Arc::clone(&bound);
            let work = async move {
                if told.standing.has_ended() {
                    return;
                }
                let event = Event {
                    trigger_type: crate::NAME,
                    function_id: told.to.function_id(),
                    condition: told.filter.condition_function_id.as_deref(),
                    data: &data,
                    trace: &trace,
                };
                event.tell(&engine, &log).await;
            };
            let _ = self.deliveries.begin(&bound.to, Some(&entry.id), room.clone(), work.boxed());
        }
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
