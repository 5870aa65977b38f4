//! The messages of one queue that are in memory, and what happens to them. No clock, no IO: time comes in, decisions
//! go out.
//!
//! ```text
//! load ─► ready ── next ─► in flight ── ended ─► settled ── batch ─► writing ── written ─► forgotten
//!                                                   ▲───────── not written ─────┘
//! ```
//! A message is known from when it is loaded until its end is on disk: what is known is not loaded again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::delivery::Delivery;
use crate::message::Message;
use crate::store::tables::{Loaded, Outcome, Room, Settlement};

/// Messages that may lie ready, in units of what may be in flight, and within these bounds.
const READY_PER_FLIGHT: usize = 4;
const MIN_READY: usize = 64;
const MAX_READY: usize = 2048;

/// Payloads in memory, ready and in flight. A larger one is alone.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// As [`MAX_BYTES`], of all windows. When it is used up, each holds one message at a time.
const MAX_BYTES_OF_ALL: usize = 64 * 1024 * 1024;

/// Ends that are not on disk yet; beyond, no delivery begins.
const MAX_UNWRITTEN: usize = 8192;

/// What all windows of a store hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    fn left(&self) -> usize {
        MAX_BYTES_OF_ALL.saturating_sub(self.0.load(Ordering::Relaxed))
    }

    fn take(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Stage {
    Ready(Message),
    InFlight(Flight),
    /// Its end is to be written, or being written.
    Ended,
}

/// What is kept of a message while it is delivered.
#[derive(Debug)]
struct Flight {
    due_ms: u64,
    group: Option<String>,
    attempts: u32,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Window {
    delivery: Delivery,
    known: BTreeMap<u64, Stage>,
    ready: BTreeSet<u64>,
    in_flight: usize,
    bytes: usize,
    budget: Budget,
    settled: Vec<Settlement>,
    writing: Vec<Settlement>,
    /// There may be messages in the store that are not known.
    more: bool,
    next_due_ms: Option<u64>,
    /// What lies in READY up to here is known or gone: numbers grow, but for groups, whose next ones come in below.
    ready_until: u64,
}

impl Window {
    pub(crate) fn new(delivery: Delivery, budget: Budget) -> Self {
        Self {
            delivery,
            known: BTreeMap::new(),
            ready: BTreeSet::new(),
            in_flight: 0,
            bytes: 0,
            budget,
            settled: Vec::new(),
            writing: Vec::new(),
            more: true,
            next_due_ms: None,
            ready_until: 0,
        }
    }

    pub(crate) fn set_delivery(&mut self, delivery: Delivery) {
        self.delivery = delivery;
    }

    /// Something was stored.
    pub(crate) fn wake(&mut self) {
        self.more = true;
    }

    /// How much is to be loaded now; `None`: nothing.
    pub(crate) fn room(&self, now_ms: u64) -> Option<Room> {
        let wanted = (self.delivery.in_flight() * READY_PER_FLIGHT).clamp(MIN_READY, MAX_READY);
        let due = self.next_due_ms.is_some_and(|due| due <= now_ms);
        let messages = wanted.saturating_sub(self.ready.len());
        let bytes = MAX_BYTES.saturating_sub(self.bytes).min(self.budget.left());
        // Half of it at a time: a look into the store costs, however little it finds.
        let low = messages * 2 >= wanted && (bytes * 2 >= MAX_BYTES || !self.holds_some());
        ((self.more || due) && low && self.unwritten() < MAX_UNWRITTEN).then_some(Room { messages, bytes })
    }

    fn holds_some(&self) -> bool {
        self.in_flight > 0 || !self.ready.is_empty()
    }

    /// Others have the memory that this one could use: there will be more without anything happening here.
    pub(crate) fn is_short(&self) -> bool {
        self.more && self.holds_some() && self.bytes * 2 <= MAX_BYTES && self.budget.left() * 2 < MAX_BYTES
    }

    pub(crate) fn is_known(&self, seq: u64) -> bool {
        self.known.contains_key(&seq)
    }

    /// Groups whose next message may be delivered though the end of the one before is not on disk: ends are written in
    /// their order.
    pub(crate) fn open_groups(&self) -> Vec<String> {
        let mut last: BTreeMap<&str, bool> = BTreeMap::new();
        for settlement in self.writing.iter().chain(&self.settled) {
            if let Some(group) = &settlement.group {
                last.insert(group, !matches!(settlement.outcome, Outcome::Retry { .. }));
            }
        }
        if last.is_empty() {
            return Vec::new();
        }
        for stage in self.known.values() {
            let group = match stage {
                Stage::Ready(message) => &message.group,
                Stage::InFlight(flight) => &flight.group,
                Stage::Ended => continue,
            };
            if let Some(group) = group {
                last.remove(group.as_str());
            }
        }
        last.into_iter().filter(|(_, open)| *open).map(|(group, _)| group.to_owned()).collect()
    }

    pub(crate) fn ready_from(&self) -> u64 {
        self.ready_until
    }

    pub(crate) fn load(&mut self, loaded: Loaded) {
        self.ready_until = loaded.ready_until;
        self.more = loaded.more;
        self.next_due_ms = loaded.next_due_ms;
        for (seq, message) in loaded.messages {
            self.bytes += message.bytes();
            self.budget.take(message.bytes());
            self.ready.insert(seq);
            self.known.insert(seq, Stage::Ready(message));
        }
    }

    /// The message that is to be delivered now.
    pub(crate) fn next(&mut self) -> Option<(u64, Message)> {
        if self.in_flight >= self.delivery.in_flight() || self.unwritten() >= MAX_UNWRITTEN {
            return None;
        }
        let seq = self.ready.pop_first()?;
        let Some(Stage::Ready(message)) = self.known.remove(&seq) else { return None };
        let flight = Flight {
            due_ms: message.due_ms,
            group: message.group.clone(),
            attempts: message.attempts,
            bytes: message.bytes(),
        };
        self.known.insert(seq, Stage::InFlight(flight));
        self.in_flight += 1;
        Some((seq, message))
    }

    /// A delivery has ended.
    pub(crate) fn ended(&mut self, now_ms: u64, seq: u64, result: Result<(), String>) {
        let Some(Stage::InFlight(flight)) = self.known.remove(&seq) else { return };
        self.known.insert(seq, Stage::Ended);
        self.in_flight -= 1;
        self.bytes -= flight.bytes;
        self.budget.give_back(flight.bytes);
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(error) => match self.delivery.pause_ms(flight.attempts.saturating_add(1)) {
                // Zero would be no time at all.
                Some(pause) => Outcome::Retry { due_ms: now_ms.saturating_add(pause).max(1) },
                None => Outcome::Dead { at_ms: now_ms, error },
            },
        };
        if flight.group.is_some() && !matches!(outcome, Outcome::Retry { .. }) {
            self.more = true;
        }
        self.settled.push(Settlement { seq, due_ms: flight.due_ms, group: flight.group, outcome });
    }

    /// Ends that are to be written now: one batch at a time.
    pub(crate) fn batch(&mut self) -> Option<Vec<Settlement>> {
        if !self.writing.is_empty() || self.settled.is_empty() {
            return None;
        }
        self.writing = std::mem::take(&mut self.settled);
        Some(self.writing.clone())
    }

    /// What was handed out by [`batch`](Self::batch) is on disk.
    pub(crate) fn written(&mut self) {
        for settlement in std::mem::take(&mut self.writing) {
            self.known.remove(&settlement.seq);
            match settlement.outcome {
                Outcome::Retry { due_ms } => {
                    self.next_due_ms = Some(self.next_due_ms.map_or(due_ms, |next| next.min(due_ms)));
                }
                Outcome::Done | Outcome::Dead { .. } if settlement.group.is_some() => {
                    self.more = true;
                    self.ready_until = 0;
                }
                Outcome::Done | Outcome::Dead { .. } => {}
            }
        }
    }

    /// It is not: it has to be handed out again.
    pub(crate) fn not_written(&mut self) {
        let later = std::mem::replace(&mut self.settled, std::mem::take(&mut self.writing));
        self.settled.extend(later);
    }

    /// When to look again though nothing happens.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.next_due_ms
    }

    /// Nothing is in flight, and every end is on disk.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight == 0 && self.unwritten() == 0
    }

    fn unwritten(&self) -> usize {
        self.settled.len() + self.writing.len()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use engine_builtin::Trace;
    use serde_json::value::to_raw_value;

    use super::*;

    fn loaded(seq: u64, bytes: usize) -> Loaded {
        let message = Message::new("f", to_raw_value(&"x".repeat(bytes)).expect("JSON"), Trace::default());
        Loaded { messages: vec![(seq, message)], more: true, ..Loaded::default() }
    }

    #[test]
    fn all_windows_share_one_budget_and_each_may_hold_one_message() {
        let settings = crate::settings::QueueWorkerSettings::parse(&serde_json::Value::Null).expect("settings");
        let budget = Budget::default();
        let window = || Window::new(settings.subscriptions.clone(), budget.clone());
        let mut full: Vec<Window> = (0..MAX_BYTES_OF_ALL / MAX_BYTES).map(|_| window()).collect();
        for window in &mut full {
            window.load(loaded(1, MAX_BYTES));
        }
        let mut late = window();
        assert_eq!(late.room(0).map(|room| room.bytes), Some(0), "one message fits whatever its size");
        late.load(loaded(1, 1));
        assert!(late.room(0).is_none() && late.is_short());
        let (seq, _) = full[0].next().expect("a message");
        full[0].ended(0, seq, Ok(()));
        assert!(late.room(0).is_some() && !late.is_short());
        drop((full, late));
        assert_eq!(budget.left(), MAX_BYTES_OF_ALL);
    }
}
