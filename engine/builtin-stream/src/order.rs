//! Keeps events in the order of their writes: writes are answered by many tasks, in any order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::Emitted;
use crate::hub::Hub;

/// The events that are not told yet, in order.
pub(crate) struct Order {
    hub: Arc<Hub>,
    places: Mutex<VecDeque<Arc<Mutex<Place>>>>,
}

enum Place {
    /// Its write was not made yet.
    Free,
    /// Its write was made, and is not known to be stored.
    Waiting(Box<Emitted>),
    Stored(Box<Emitted>),
    /// There is nothing to be told, or no longer.
    Done,
}

/// One write's place among the events; given up when this is dropped.
pub(crate) struct Ticket {
    order: Arc<Order>,
    place: Arc<Mutex<Place>>,
}

/// The end of a [`Ticket`] that goes with the write.
pub(crate) struct Entry {
    order: Arc<Order>,
    place: Arc<Mutex<Place>>,
}

impl Order {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub, places: Mutex::default() })
    }

    pub(crate) fn ticket(self: &Arc<Self>) -> (Ticket, Entry) {
        let place = Arc::new(Mutex::new(Place::Free));
        let entry = Entry { order: Arc::clone(self), place: Arc::clone(&place) };
        (Ticket { order: Arc::clone(self), place }, entry)
    }

    /// Tells of something that is no write, behind what was written before.
    pub(crate) fn tell(self: &Arc<Self>, emitted: Emitted) {
        let (ticket, entry) = self.ticket();
        entry.enter(emitted);
        ticket.stored();
    }

    /// Tells what is stored and has nothing before it. Whoever tells holds the lock, so there is one order.
    fn drain(&self, places: &mut VecDeque<Arc<Mutex<Place>>>) {
        while let Some(first) = places.front() {
            let mut place = lock(first);
            if matches!(*place, Place::Waiting(_) | Place::Free) {
                return;
            }
            if let Place::Stored(emitted) = std::mem::replace(&mut *place, Place::Done) {
                self.hub.emit(&emitted);
            }
            drop(place);
            places.pop_front();
        }
    }
}

impl Entry {
    /// Takes the next place. In the order of the writes.
    pub(crate) fn enter(self, emitted: Emitted) {
        let mut places = lock(&self.order.places);
        let mut place = lock(&self.place);
        if matches!(*place, Place::Free) {
            *place = Place::Waiting(Box::new(emitted));
            places.push_back(Arc::clone(&self.place));
        }
    }
}

impl Ticket {
    /// The write is stored: its event may be told.
    pub(crate) fn stored(self) {
        let mut places = lock(&self.order.places);
        let mut place = lock(&self.place);
        *place = match std::mem::replace(&mut *place, Place::Done) {
            Place::Waiting(emitted) => Place::Stored(emitted),
            nothing => nothing,
        };
        drop(place);
        self.order.drain(&mut places);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut places = lock(&self.order.places);
        let mut place = lock(&self.place);
        if matches!(*place, Place::Free | Place::Waiting(_)) {
            *place = Place::Done;
        }
        drop(place);
        self.order.drain(&mut places);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
