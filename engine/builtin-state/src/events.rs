//! Events: what the trigger type `state` is bound to, and how what happened gets there.
//!
//! ```text
//! write ── reserve: a slot in the key's lane, while the adapter decides the order of writes
//!   │          └─► lane (one task per key with events) ── waits for the slot, then calls the handlers in turn
//!   └── fire: the write is acknowledged; a slot that is dropped instead is passed over
//! ```

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use engine_builtin::{Binding, Engine, ErrorBody, Invocation, Raw, Trace, is_met};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::functions::Place;

/// Events of one key that wait for its handlers.
const MAX_WAITING_PER_KEY: usize = 1024;

/// What all events that wait may take, in bytes; one that is larger has it for itself.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// What an event takes besides its values.
const EVENT_BYTES: usize = 1024;

/// A function that is bound to the trigger type, and to what.
#[derive(Debug)]
struct Handler {
    binding_id: String,
    function_id: String,
    filter: Filter,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Filter {
    scope: Option<String>,
    key: Option<String>,
    condition_function_id: Option<String>,
}

impl Handler {
    fn matches(&self, place: &Place) -> bool {
        let fits = |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|wanted| wanted == given);
        fits(&self.filter.scope, &place.scope) && fits(&self.filter.key, &place.key)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum EventType {
    #[serde(rename = "state:created")]
    Created,
    #[serde(rename = "state:updated")]
    Updated,
    #[serde(rename = "state:deleted")]
    Deleted,
}

/// What handlers and their conditions are called with.
#[derive(Serialize)]
struct Payload<'a> {
    r#type: &'static str,
    event_type: EventType,
    scope: &'a str,
    key: &'a str,
    old_value: Option<&'a RawValue>,
    new_value: Option<&'a RawValue>,
}

/// An event's place in the order of its key.
pub(crate) struct Slot {
    place: Arc<Place>,
    payload: oneshot::Sender<Raw>,
}

impl Slot {
    /// The write is acknowledged.
    pub(crate) fn fire(self, old_value: Option<&RawValue>, new_value: Option<&RawValue>) {
        let event_type = match (old_value, new_value) {
            (_, None) => EventType::Deleted,
            (None, Some(_)) => EventType::Created,
            (Some(_), Some(_)) => EventType::Updated,
        };
        let Place { scope, key } = &*self.place;
        let payload = Payload { r#type: "state", event_type, scope, key, old_value, new_value };
        let payload = to_raw_value(&payload).expect("strings and JSON can be written as JSON");
        // The lanes have been ended: the engine stops.
        let _ = self.payload.send(payload);
    }
}

/// An event that is to come.
struct Waiting {
    payload: oneshot::Receiver<Raw>,
    /// A binding that has gone meanwhile is not called any more.
    handlers: Vec<Weak<Handler>>,
    trace: Trace,
    _room: OwnedSemaphorePermit,
}

/// Keys with events, and their events in order. A key's task takes it out when it has none left.
type Lanes = Mutex<HashMap<Arc<Place>, VecDeque<Waiting>>>;

/// All bindings, and all events on their way.
pub(crate) struct Events {
    engine: Engine,
    enabled: AtomicBool,
    handlers: RwLock<Vec<Arc<Handler>>>,
    lanes: Lanes,
    room: Arc<Semaphore>,
    /// So that the log says once that events are lost.
    losing: AtomicBool,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Events {
    /// Must be called inside a runtime.
    pub(crate) fn new(engine: Engine, enabled: bool) -> Arc<Self> {
        Arc::new(Self {
            engine,
            enabled: AtomicBool::new(enabled),
            handlers: RwLock::default(),
            lanes: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            losing: AtomicBool::new(false),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    pub(crate) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let filter = match binding.config {
            Value::Null => Filter::default(),
            config => serde_json::from_value(config).map_err(|error| {
                ErrorBody::new("trigger_registration_failed", format!("config of a `state` trigger: {error}"))
            })?,
        };
        let handler = Arc::new(Handler { binding_id: binding.id, function_id: binding.function_id, filter });
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        match handlers.iter_mut().find(|known| known.binding_id == handler.binding_id) {
            Some(known) => *known = handler,
            None => handlers.push(handler),
        }
        Ok(())
    }

    pub(crate) fn unbind(&self, id: &str) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).retain(|handler| handler.binding_id != id);
    }

    /// Takes a place in the order of a key's events, if anyone wants to know; `bytes` is the size of the values.
    pub(crate) fn reserve(self: &Arc<Self>, place: &Arc<Place>, trace: &Trace, bytes: usize) -> Option<Slot> {
        if !self.enabled.load(Ordering::Relaxed) {
            return None;
        }
        let handlers = self.matching(place);
        if handlers.is_empty() {
            return None;
        }
        let size = u32::try_from((bytes + EVENT_BYTES).min(MAX_WAITING_BYTES)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(size) else {
            self.lost(place);
            return None;
        };
        let (sender, payload) = oneshot::channel();
        let waiting = Waiting { payload, handlers, trace: trace.clone(), _room: room };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match lanes.entry(Arc::clone(place)) {
            Entry::Occupied(lane) if lane.get().len() >= MAX_WAITING_PER_KEY => {
                drop(lanes);
                self.lost(place);
                return None;
            }
            Entry::Occupied(mut lane) => lane.get_mut().push_back(waiting),
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::from([waiting]));
                let (events, place) = (Arc::clone(self), Arc::clone(place));
                self.tasks.spawn_on(async move { events.deliver(&place).await }, &self.runtime);
            }
        }
        self.losing.store(false, Ordering::Relaxed);
        Some(Slot { place: Arc::clone(place), payload: sender })
    }

    fn matching(&self, place: &Place) -> Vec<Weak<Handler>> {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        handlers.iter().filter(|handler| handler.matches(place)).map(Arc::downgrade).collect()
    }

    fn lost(&self, place: &Place) {
        if !self.losing.swap(true, Ordering::Relaxed) {
            warn!(scope = place.scope, key = place.key, "handlers are too slow: events of `state` triggers are lost");
        }
    }

    /// A key's task: until it has no event left.
    async fn deliver(&self, place: &Arc<Place>) {
        while let Some(waiting) = self.next(place) {
            if self.stop.run_until_cancelled(self.handle(waiting)).await.is_none() {
                return;
            }
        }
    }

    fn next(&self, place: &Arc<Place>) -> Option<Waiting> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let next = lanes.get_mut(place).and_then(VecDeque::pop_front);
        if next.is_none() {
            lanes.remove(place);
        }
        next
    }

    async fn handle(&self, waiting: Waiting) {
        // Not written after all.
        let Ok(payload) = waiting.payload.await else { return };
        for handler in waiting.handlers {
            let Some(handler) = handler.upgrade() else { continue };
            let function_id = handler.function_id.as_str();
            let condition = handler.filter.condition_function_id.as_deref();
            match is_met(&self.engine, condition, &payload, &waiting.trace).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    warn!(function_id, condition, %error, "the condition of a `state` trigger failed");
                    continue;
                }
            }
            let data = payload.clone();
            let call = Invocation { function_id: function_id.to_owned(), data, trace: waiting.trace.clone() };
            if let Err(error) = self.engine.call(call).await {
                warn!(function_id, %error, "the handler of a `state` trigger failed");
            }
        }
    }

    /// Ends what is on its way.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
