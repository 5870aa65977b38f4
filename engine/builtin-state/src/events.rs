//! Events: what the trigger type `state` is bound to, and how what happened gets there.
//!
//! ```text
//! write ── reserve: a slot in the key's lane of each binding, while the adapter decides the order of writes
//!   │          └─► lane (one task per binding and key with events) ── waits for the slot, then calls the handler
//!   └── fire: the write is acknowledged; a slot that is dropped instead is passed over
//! ```
//! What waits for a handler is counted against its binding, and against its VM's worker if one has bound it: one that hangs
//! loses its own events, not those of others.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use engine_builtin::{Binding, Engine, ErrorBody, Event, LogLimit, PER_VM, Raw, Standing, Trace};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::NAME;
use crate::functions::Place;

/// Events of one key that wait for a handler.
const MAX_WAITING_PER_KEY: usize = 1024;

/// What all events that wait may take, in bytes; one that is larger has it for itself.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// Of these, what may wait for one binding.
const MAX_WAITING_BYTES_PER_BINDING: usize = MAX_WAITING_BYTES / 8;

/// What may wait for all that a VM's worker has bound.
const MAX_WAITING_BYTES_PER_VM: usize = MAX_WAITING_BYTES / 4;

/// Calls of one binding's handler at once, each for another key.
const MAX_IN_FLIGHT_PER_BINDING: usize = 64;

/// Of all that a VM's worker has bound.
const MAX_IN_FLIGHT_PER_VM: usize = PER_VM.in_flight;

/// What an event takes besides its values.
const EVENT_BYTES: usize = 1024;

/// A function that is bound to the trigger type, to what, and the events that wait for it.
#[derive(Debug)]
struct Handler {
    binding_id: String,
    filter: Filter,
    lanes: Arc<Lanes>,
    target: Arc<Target>,
    log: LogLimit,
}

/// What is called for a binding, and how much.
#[derive(Debug)]
struct Target {
    function_id: String,
    condition: Option<String>,
    /// Of the binding, and of its VM's worker.
    shares: Vec<Arc<Share>>,
    standing: Standing,
}

/// How many bytes may wait and how many calls be made at once.
#[derive(Debug)]
struct Share {
    bytes: usize,
    room: Arc<Semaphore>,
    turns: Semaphore,
}

impl Share {
    fn new(bytes: usize, in_flight: usize) -> Arc<Self> {
        Arc::new(Self { bytes, room: Arc::new(Semaphore::new(bytes)), turns: Semaphore::new(in_flight) })
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_many_owned(permits(bytes, self.bytes)).ok()
    }
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

    fn lost(&self, place: &Place) {
        let (function, Place { scope, key }) = (&self.target.function_id, place);
        self.log.line(|| warn!(function, scope, key, "an event of a `state` trigger is lost: handlers are too slow"));
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
    /// One for each binding.
    payloads: Vec<oneshot::Sender<Arc<Raw>>>,
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
        let payload = Arc::new(to_raw_value(&payload).expect("strings and JSON can be written as JSON"));
        for binding in self.payloads {
            // It has gone, or the engine stops.
            let _ = binding.send(Arc::clone(&payload));
        }
    }
}

/// An event that is to come, as one binding sees it.
#[derive(Debug)]
struct Waiting {
    target: Arc<Target>,
    payload: oneshot::Receiver<Arc<Raw>>,
    trace: Trace,
    _room: Arc<OwnedSemaphorePermit>,
    _shares: Vec<OwnedSemaphorePermit>,
}

/// Keys with events, and their events in order. A key's task takes it out when it has none left.
#[derive(Debug, Default)]
struct Lanes(Mutex<HashMap<Arc<Place>, VecDeque<Waiting>>>);

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Place>, VecDeque<Waiting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, place: &Arc<Place>) -> Option<Waiting> {
        let mut lanes = self.lock();
        let next = lanes.get_mut(place).and_then(VecDeque::pop_front);
        if next.is_none() {
            lanes.remove(place);
        }
        next
    }
}

/// All bindings, and all events on their way.
pub(crate) struct Events {
    engine: Engine,
    enabled: AtomicBool,
    handlers: RwLock<Vec<Arc<Handler>>>,
    /// Shares of VMs whose workers have bound something, or are being called.
    vms: Mutex<HashMap<String, Weak<Share>>>,
    room: Arc<Semaphore>,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    log: LogLimit,
}

impl Events {
    /// Must be called inside a runtime.
    pub(crate) fn new(engine: Engine, enabled: bool) -> Arc<Self> {
        Arc::new(Self {
            engine,
            enabled: AtomicBool::new(enabled),
            handlers: RwLock::default(),
            vms: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            log: LogLimit::new(NAME),
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
        let own = Share::new(MAX_WAITING_BYTES_PER_BINDING, MAX_IN_FLIGHT_PER_BINDING);
        let shares = std::iter::once(own).chain(binding.vm.map(|vm| self.share_of(vm))).collect();
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        let known = handlers.iter_mut().find(|known| known.binding_id == binding.id);
        let target = Target {
            function_id: binding.function_id,
            condition: filter.condition_function_id.clone(),
            shares,
            standing: known.as_ref().map(|known| known.target.standing.clone()).unwrap_or_default(),
        };
        let handler = Arc::new(Handler {
            binding_id: binding.id,
            filter,
            lanes: known.as_ref().map(|known| Arc::clone(&known.lanes)).unwrap_or_default(),
            target: Arc::new(target),
            log: self.log.clone(),
        });
        match known {
            Some(known) => *known = handler,
            None => handlers.push(handler),
        }
        Ok(())
    }

    fn share_of(&self, vm: String) -> Arc<Share> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.retain(|_, share| share.strong_count() > 0);
        let known = vms.get(&vm).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let share = Share::new(MAX_WAITING_BYTES_PER_VM, MAX_IN_FLIGHT_PER_VM);
            vms.insert(vm, Arc::downgrade(&share));
            share
        })
    }

    pub(crate) fn unbind(&self, id: &str) {
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = handlers.iter().position(|handler| handler.binding_id == id) {
            handlers.remove(at).target.standing.end();
        }
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
        let bytes = bytes + trace.bytes() + EVENT_BYTES;
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(permits(bytes, MAX_WAITING_BYTES)) else {
            handlers.iter().for_each(|handler| handler.lost(place));
            return None;
        };
        let room = Arc::new(room);
        let enter = |handler: &Arc<Handler>| self.enter(handler, place, trace, &room, bytes);
        let payloads: Vec<_> = handlers.iter().filter_map(enter).collect();
        (!payloads.is_empty()).then(|| Slot { place: Arc::clone(place), payloads })
    }

    fn matching(&self, place: &Place) -> Vec<Arc<Handler>> {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        handlers.iter().filter(|handler| handler.matches(place)).cloned().collect()
    }

    /// Takes a place in one binding's lane, if there is room for it.
    fn enter(
        self: &Arc<Self>,
        handler: &Arc<Handler>,
        place: &Arc<Place>,
        trace: &Trace,
        room: &Arc<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Option<oneshot::Sender<Arc<Raw>>> {
        let shares: Option<Vec<_>> = handler.target.shares.iter().map(|share| share.take(bytes)).collect();
        let Some(shares) = shares else {
            handler.lost(place);
            return None;
        };
        let (sender, payload) = oneshot::channel();
        let target = Arc::clone(&handler.target);
        let waiting = Waiting { target, payload, trace: trace.clone(), _room: Arc::clone(room), _shares: shares };
        match handler.lanes.lock().entry(Arc::clone(place)) {
            Entry::Occupied(lane) if lane.get().len() >= MAX_WAITING_PER_KEY => {
                handler.lost(place);
                return None;
            }
            Entry::Occupied(mut lane) => lane.get_mut().push_back(waiting),
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::from([waiting]));
                let (events, lanes, place) = (Arc::clone(self), Arc::clone(&handler.lanes), Arc::clone(place));
                self.tasks.spawn_on(async move { events.deliver(&lanes, &place).await }, &self.runtime);
            }
        }
        Some(sender)
    }

    /// The task of a binding's key: until it has no event left. A binding that has gone is not called any more.
    async fn deliver(&self, lanes: &Lanes, place: &Arc<Place>) {
        while let Some(waiting) = lanes.next(place) {
            if self.stop.run_until_cancelled(self.handle(waiting)).await.is_none() {
                return;
            }
        }
    }

    async fn handle(&self, waiting: Waiting) {
        // Not written after all.
        let Ok(payload) = waiting.payload.await else { return };
        let target = &*waiting.target;
        let mut turns = Vec::new();
        for share in &target.shares {
            let Ok(turn) = share.turns.acquire().await else { return };
            turns.push(turn);
        }
        if target.standing.has_ended() {
            return;
        }
        let event = Event {
            trigger_type: crate::TRIGGER_TYPE,
            function_id: &target.function_id,
            condition: target.condition.as_deref(),
            data: &payload,
            trace: &waiting.trace,
        };
        event.tell(&self.engine, &self.log).await;
    }

    /// Ends what is on its way.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// One that is larger than all the room takes all of it.
fn permits(bytes: usize, room: usize) -> u32 {
    u32::try_from(bytes.min(room)).unwrap_or(u32::MAX)
}
