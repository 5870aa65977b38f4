//! Hands each event to those who want to see it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Utf8Bytes;
use engine_builtin::LogLimit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::event::Emitted;
use crate::functions::MAX_SYNC_BYTES;
use crate::outbox::{Letters, Outbox};
use crate::triggers::Triggers;

/// What all subscriptions together may be beginning with, in bytes. Others wait for it.
const MAX_SYNCING_BYTES: usize = 16 * MAX_SYNC_BYTES;

/// By stream, then by group.
type Groups = HashMap<String, HashMap<String, Vec<Arc<Subscription>>>>;

/// The subscriptions of one adapter.
pub(crate) struct Hub {
    triggers: Arc<Triggers>,
    groups: Mutex<Groups>,
    /// Grows when events may have been missed.
    missed: watch::Sender<u64>,
    /// Bytes of what subscriptions begin with, being read or not sent yet.
    pub(crate) syncing: Arc<Semaphore>,
}

/// What one connection wants to see.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) stream_name: String,
    pub(crate) group_id: String,
    /// None: every item of the group.
    pub(crate) item_id: Option<String>,
    outbox: Arc<Outbox>,
    channel_size: usize,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// What came since the `sync` was asked for; `None` when it was sent.
    since: Option<Letters>,
    /// The `sync` contains the writes up to this one.
    synced: u64,
}

impl Hub {
    pub(crate) fn new(triggers: Arc<Triggers>) -> Self {
        Self {
            triggers,
            groups: Mutex::default(),
            missed: watch::Sender::new(0),
            syncing: Arc::new(Semaphore::new(MAX_SYNCING_BYTES)),
        }
    }

    /// Of lines that callers and handlers cause.
    pub(crate) fn log(&self) -> &LogLimit {
        &self.triggers.log
    }

    /// Never waits. Called in the order in which events are to be seen.
    pub(crate) fn emit(&self, emitted: &Emitted) {
        let subscriptions = self.of(&emitted.event.stream_name, &emitted.event.group_id);
        let wanted = |subscription: &&Arc<Subscription>| {
            subscription.item_id.is_none() || subscription.item_id == emitted.event.id
        };
        let text = emitted.event.text();
        let mut shared = None;
        for subscription in subscriptions.iter().filter(wanted) {
            let shared = shared.get_or_insert_with(|| Utf8Bytes::from(text.get()));
            subscription.receive(shared.clone(), emitted.write);
        }
        self.triggers.fire(&emitted.event, text, &emitted.trace);
    }

    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, stream_name: &str, group_id: &str) -> Vec<Arc<Subscription>> {
        let groups = self.lock();
        groups.get(stream_name).and_then(|groups| groups.get(group_id)).cloned().unwrap_or_default()
    }

    pub(crate) fn add(&self, subscription: Arc<Subscription>) {
        let mut groups = self.lock();
        let groups = groups.entry(subscription.stream_name.clone()).or_default();
        groups.entry(subscription.group_id.clone()).or_default().push(subscription);
    }

    pub(crate) fn remove(&self, subscription: &Arc<Subscription>) {
        let mut streams = self.lock();
        let Some(groups) = streams.get_mut(&subscription.stream_name) else { return };
        if let Some(group) = groups.get_mut(&subscription.group_id) {
            group.retain(|other| !Arc::ptr_eq(other, subscription));
            if group.is_empty() {
                groups.remove(&subscription.group_id);
            }
        }
        if groups.is_empty() {
            streams.remove(&subscription.stream_name);
        }
    }

    /// Events may have been missed: every subscription needs a new `sync`.
    pub(crate) fn missed_events(&self) {
        self.missed.send_modify(|times| *times += 1);
    }

    pub(crate) fn missed(&self) -> watch::Receiver<u64> {
        self.missed.subscribe()
    }
}

impl Subscription {
    /// It holds back what comes until it was [synced](Self::synced).
    pub(crate) fn new(
        (stream_name, group_id, item_id): (String, String, Option<String>),
        outbox: Arc<Outbox>,
        channel_size: usize,
    ) -> Self {
        let seen = Mutex::new(Seen { since: Some(Letters::new(channel_size)), synced: 0 });
        Self { stream_name, group_id, item_id, outbox, channel_size, seen }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, text: Utf8Bytes, write: Option<u64>) {
        let mut seen = self.lock();
        let synced = seen.synced;
        match &mut seen.since {
            Some(since) => since.push(text, write),
            None if write.is_some_and(|write| write <= synced) => {}
            None => self.outbox.push(text, write),
        }
    }

    /// Holds back again what comes, for a new `sync`.
    pub(crate) fn resync(&self) {
        self.lock().since = Some(Letters::new(self.channel_size));
    }

    /// There will be no `sync`: what came is sent, and what comes.
    pub(crate) fn unsynced(&self) {
        let mut seen = self.lock();
        self.release(&mut seen);
    }

    /// Sends the `sync`, which contains the writes up to `synced`, and then what came since and is not in it. Only
    /// after [`Outbox::room_to_keep`].
    pub(crate) fn synced(&self, sync: Utf8Bytes, synced: u64, room: OwnedSemaphorePermit) {
        let mut seen = self.lock();
        self.outbox.keep(sync, Some(room));
        seen.synced = synced;
        self.release(&mut seen);
    }

    fn release(&self, seen: &mut Seen) {
        let Some(mut since) = seen.since.take() else { return };
        while let Some(letter) = since.pop() {
            if letter.write.is_none_or(|write| write > seen.synced) {
                self.outbox.push(letter.text, letter.write);
            }
        }
    }
}
