//! Calls that events cause and nobody waits for, bounded.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;

/// Deliveries under way at once. Those beyond wait, in order.
pub const MAX_IN_FLIGHT: usize = 1024;

/// Of these, to one function.
pub const MAX_IN_FLIGHT_PER_FUNCTION: usize = 64;

/// Deliveries that wait. One that comes when so many wait is dropped.
pub const MAX_WAITING: usize = 16_384;

/// Of these, for one function.
pub const MAX_WAITING_PER_FUNCTION: usize = MAX_WAITING / 8;

/// What deliveries carry, waiting and under way, in bytes; one that is larger is taken when there is no other.
pub const MAX_BYTES: usize = 128 * 1024 * 1024;

/// Of these, for one function; one that is larger is taken when there is no other for it.
pub const MAX_BYTES_PER_FUNCTION: usize = MAX_BYTES / 8;

/// There are too many deliveries: this one was dropped, and the log says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many deliveries are waiting")]
pub struct Overloaded;

/// Space for what some deliveries carry; clones share it, and the last of them gives it back.
#[derive(Clone)]
pub struct Room {
    bytes: usize,
    _permit: Arc<OwnedSemaphorePermit>,
}

struct Delivery {
    work: BoxFuture<'static, ()>,
    _room: Room,
    claim: Claim,
}

/// Runs deliveries: those to one function begin in the order they were handed over, and all overlap. One that hangs
/// takes no more than its function's share from the others. Those not done when this is dropped are dropped, too.
pub struct Deliveries {
    waiting: mpsc::UnboundedSender<Delivery>,
    room: Arc<Semaphore>,
    shares: Arc<Mutex<Shares>>,
    dropped: AtomicU64,
    runner: JoinHandle<()>,
}

impl Deliveries {
    /// Must be called inside a runtime.
    #[must_use]
    pub fn new() -> Self {
        // Bounded by the shares.
        let (waiting, deliveries) = mpsc::unbounded_channel();
        Self {
            waiting,
            room: Arc::new(Semaphore::new(MAX_BYTES)),
            shares: Arc::default(),
            dropped: AtomicU64::new(0),
            runner: tokio::spawn(run(deliveries)),
        }
    }

    /// Space for one message, however many get it.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn room(&self, bytes: usize) -> Result<Room, Overloaded> {
        let permits = u32::try_from(bytes.min(MAX_BYTES)).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(permits) {
            Ok(permit) => Ok(Room { bytes, _permit: Arc::new(permit) }),
            Err(_) => Err(self.dropped(None)),
        }
    }

    /// Hands over one delivery. Never waits, and runs nothing of it here.
    ///
    /// # Errors
    /// [`Overloaded`]: too many wait, or too many for this function.
    pub fn begin(&self, function_id: &str, room: Room, work: BoxFuture<'static, ()>) -> Result<(), Overloaded> {
        let claim = Claim::take(&self.shares, function_id, room.bytes);
        let claim = claim.ok_or_else(|| self.dropped(Some(function_id)))?;
        self.waiting.send(Delivery { work, _room: room, claim }).map_err(|_| self.dropped(Some(function_id)))
    }

    /// The first is told, and then each time that their number has doubled.
    fn dropped(&self, function: Option<&str>) -> Overloaded {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            warn!(dropped, function, "deliveries were dropped: their handlers are too slow");
        }
        Overloaded
    }
}

impl Default for Deliveries {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.runner.abort();
    }
}

/// What is waiting and under way, of all functions and of each that has any.
#[derive(Default)]
struct Shares {
    deliveries: usize,
    by_function: HashMap<Arc<str>, Share>,
}

#[derive(Default)]
struct Share {
    deliveries: usize,
    bytes: usize,
}

/// One delivery's part of its function's share; given back when this is dropped.
struct Claim {
    shares: Arc<Mutex<Shares>>,
    function_id: Arc<str>,
    bytes: usize,
}

impl Claim {
    fn take(shares: &Arc<Mutex<Shares>>, function_id: &str, bytes: usize) -> Option<Self> {
        let mut all = lock(shares);
        if all.deliveries >= MAX_IN_FLIGHT + MAX_WAITING {
            return None;
        }
        let function_id = match all.by_function.get_key_value(function_id) {
            Some((_, share)) if share.is_full(bytes) => return None,
            Some((known, _)) => Arc::clone(known),
            None => function_id.into(),
        };
        all.deliveries += 1;
        let share = all.by_function.entry(Arc::clone(&function_id)).or_default();
        share.deliveries += 1;
        share.bytes += bytes;
        Some(Self { shares: Arc::clone(shares), function_id, bytes })
    }
}

impl Share {
    fn is_full(&self, bytes: usize) -> bool {
        self.deliveries >= MAX_IN_FLIGHT_PER_FUNCTION + MAX_WAITING_PER_FUNCTION
            || self.bytes.saturating_add(bytes) > MAX_BYTES_PER_FUNCTION
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = lock(&self.shares);
        all.deliveries -= 1;
        if let Some(share) = all.by_function.get_mut(&self.function_id) {
            share.deliveries -= 1;
            share.bytes -= self.bytes;
            if share.deliveries == 0 {
                all.by_function.remove(&self.function_id);
            }
        }
    }
}

fn lock(shares: &Mutex<Shares>) -> MutexGuard<'_, Shares> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deliveries that have begun, and those of functions that have as many under way as they may.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<Arc<str>>,
    functions: HashMap<Arc<str>, Busy>,
}

#[derive(Default)]
struct Busy {
    in_flight: usize,
    waiting: VecDeque<Delivery>,
}

impl UnderWay {
    /// Its function's turn may come later.
    fn begin(&mut self, delivery: Delivery) {
        match self.functions.get_mut(&delivery.claim.function_id) {
            Some(busy) if busy.in_flight >= MAX_IN_FLIGHT_PER_FUNCTION => busy.waiting.push_back(delivery),
            Some(_) | None => self.run(delivery),
        }
    }

    /// Its call is made here, behind those before it; the rest is a task's.
    fn run(&mut self, delivery: Delivery) {
        let Delivery { work, _room, claim } = delivery;
        let function_id = Arc::clone(&claim.function_id);
        // A panic below ends one delivery, not all.
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        if (&mut work).now_or_never().is_some() {
            return;
        }
        self.functions.entry(Arc::clone(&function_id)).or_default().in_flight += 1;
        self.tasks.spawn(async move {
            let _ = work.await;
            drop((_room, claim));
            function_id
        });
    }

    fn ended(&mut self, function_id: &Arc<str>) {
        let Some(busy) = self.functions.get_mut(function_id) else { return };
        busy.in_flight -= 1;
        loop {
            let Some(busy) = self.functions.get_mut(function_id) else { return };
            if busy.in_flight >= MAX_IN_FLIGHT_PER_FUNCTION {
                return;
            }
            let Some(next) = busy.waiting.pop_front() else { break };
            self.run(next);
        }
        if self.functions.get(function_id).is_some_and(|busy| busy.in_flight == 0) {
            self.functions.remove(function_id);
        }
    }
}

async fn run(mut waiting: mpsc::UnboundedReceiver<Delivery>) {
    let mut under_way = UnderWay::default();
    loop {
        tokio::select! {
            Some(ended) = under_way.tasks.join_next() => {
                // Nobody aborts one, and panics are caught.
                if let Ok(function_id) = ended {
                    under_way.ended(&function_id);
                }
            }
            // Cancel safe: nothing is taken out of the channel then.
            next = waiting.recv(), if under_way.tasks.len() < MAX_IN_FLIGHT => {
                let Some(delivery) = next else { break };
                under_way.begin(delivery);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn deliveries_begin_in_order_and_overlap() {
        let deliveries = Deliveries::new();
        let begun = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::new(tokio::sync::Barrier::new(101));
        for number in 0..100 {
            let (begun, all) = (Arc::clone(&begun), Arc::clone(&all));
            let work = async move {
                begun.lock().expect("no panic").push(number);
                all.wait().await;
            };
            let function_id = if number < 50 { "first" } else { "second" };
            deliveries.begin(function_id, deliveries.room(1).expect("room"), work.boxed()).expect("room");
        }
        all.wait().await;
        assert_eq!(*begun.lock().expect("no panic"), (0..100).collect::<Vec<_>>());
    }

    /// Begins deliveries that never end, one after another, until one is dropped: how many were not.
    async fn fill(deliveries: &Deliveries, bytes: usize, function_id: impl Fn(usize) -> String) -> (usize, usize) {
        let begun = Arc::new(AtomicU64::new(0));
        let mut accepted = 0;
        loop {
            let counted = Arc::clone(&begun);
            let work = async move {
                counted.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            };
            let room = deliveries.room(bytes).expect("room");
            if deliveries.begin(&function_id(accepted), room, work.boxed()).is_err() {
                break;
            }
            accepted += 1;
        }
        for _ in 0..accepted {
            tokio::task::yield_now().await;
        }
        (usize::try_from(begun.load(Ordering::Relaxed)).expect("a count"), accepted)
    }

    #[tokio::test]
    async fn handlers_that_never_end_hold_up_a_bounded_number_of_deliveries() {
        let deliveries = Deliveries::new();
        let filled = fill(&deliveries, 1, |number| format!("f{}", number % 100)).await;
        assert_eq!(filled, (MAX_IN_FLIGHT, MAX_IN_FLIGHT + MAX_WAITING));
    }

    #[tokio::test]
    async fn a_function_that_hangs_leaves_the_others_their_deliveries() {
        let deliveries = Deliveries::new();
        let (begun, accepted) = fill(&deliveries, 1, |_| "hangs".to_owned()).await;
        assert_eq!(begun, MAX_IN_FLIGHT_PER_FUNCTION);
        assert_eq!(accepted, MAX_IN_FLIGHT_PER_FUNCTION + MAX_WAITING_PER_FUNCTION);
        let (_, large) = fill(&deliveries, MAX_BYTES_PER_FUNCTION / 4, |_| "hangs with much".to_owned()).await;
        assert_eq!(large, 4);
        for _ in 0..1000 {
            let (done, wait) = tokio::sync::oneshot::channel();
            let work = async move {
                let _ = done.send(());
            };
            deliveries.begin("answers", deliveries.room(1).expect("room"), work.boxed()).expect("room");
            wait.await.expect("delivered");
        }
    }

    #[tokio::test]
    async fn what_waits_for_a_busy_function_follows_in_order_and_a_panic_ends_only_itself() {
        let deliveries = Deliveries::new();
        let (gate, done) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let begun = Arc::new(Mutex::new(Vec::new()));
        let count = 4 * MAX_IN_FLIGHT_PER_FUNCTION;
        for number in 0..count {
            let (gate, done, begun) = (Arc::clone(&gate), Arc::clone(&done), Arc::clone(&begun));
            let work = async move {
                begun.lock().expect("no panic").push(number);
                if number + 1 == count {
                    done.notify_one();
                }
                gate.acquire().await.expect("open").forget();
                assert!(number != 3, "one that panics");
            };
            deliveries.begin("f", deliveries.room(1).expect("room"), work.boxed()).expect("room");
        }
        gate.add_permits(count);
        done.notified().await;
        assert_eq!(*begun.lock().expect("no panic"), (0..count).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn large_messages_are_bounded_by_their_bytes() {
        let deliveries = Deliveries::new();
        let whole = deliveries.room(2 * MAX_BYTES).expect("room for one");
        assert!(matches!(deliveries.room(1), Err(Overloaded)));
        let (done, wait) = tokio::sync::oneshot::channel();
        let work = async move {
            let _ = done.send(());
        };
        deliveries.begin("f", whole, work.boxed()).expect("room");
        wait.await.expect("delivered");
        while deliveries.room(1).is_err() {
            tokio::task::yield_now().await;
        }
    }
}
