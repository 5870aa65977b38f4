//! Calls that events cause and nobody waits for, bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;

/// Deliveries under way at once. Those beyond wait, in order.
pub const MAX_IN_FLIGHT: usize = 1024;

/// Deliveries that wait. One that comes when so many wait is dropped.
pub const MAX_WAITING: usize = 16_384;

/// What deliveries carry, waiting and under way, in bytes; one that is larger is taken when there is no other.
pub const MAX_BYTES: usize = 128 * 1024 * 1024;

/// There are too many deliveries: this one was dropped, and the log says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many deliveries are waiting")]
pub struct Overloaded;

/// Space for what some deliveries carry; clones share it, and the last of them gives it back.
#[derive(Clone)]
pub struct Room {
    _bytes: Arc<OwnedSemaphorePermit>,
}

struct Delivery {
    work: BoxFuture<'static, ()>,
    _room: Room,
}

/// Runs deliveries: they begin in the order they were handed over and then overlap. Those not done when this is dropped
/// are dropped, too.
pub struct Deliveries {
    waiting: mpsc::Sender<Delivery>,
    room: Arc<Semaphore>,
    dropped: AtomicU64,
    runner: JoinHandle<()>,
}

impl Deliveries {
    /// Must be called inside a runtime.
    #[must_use]
    pub fn new() -> Self {
        let (waiting, deliveries) = mpsc::channel(MAX_WAITING);
        Self {
            waiting,
            room: Arc::new(Semaphore::new(MAX_BYTES)),
            dropped: AtomicU64::new(0),
            runner: tokio::spawn(run(deliveries)),
        }
    }

    /// Space for one message, however many get it.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn room(&self, bytes: usize) -> Result<Room, Overloaded> {
        let bytes = u32::try_from(bytes.min(MAX_BYTES)).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            Ok(permit) => Ok(Room { _bytes: Arc::new(permit) }),
            Err(_) => Err(self.dropped()),
        }
    }

    /// Hands over one delivery. Never waits, and runs nothing of it here.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn begin(&self, room: Room, work: BoxFuture<'static, ()>) -> Result<(), Overloaded> {
        self.waiting.try_send(Delivery { work, _room: room }).map_err(|_| self.dropped())
    }

    /// The first is told, and then each time that their number has doubled.
    fn dropped(&self) -> Overloaded {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            warn!(dropped, "deliveries were dropped: their handlers are too slow");
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

async fn run(mut waiting: mpsc::Receiver<Delivery>) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = under_way.join_next() => {}
            // Cancel safe: nothing is taken out of the channel then.
            next = waiting.recv(), if under_way.len() < MAX_IN_FLIGHT => {
                let Some(mut delivery) = next else { break };
                // Its call is made here, behind those before it; the rest is a task's.
                if (&mut delivery.work).now_or_never().is_none() {
                    under_way.spawn(async move { delivery.work.as_mut().await });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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
            deliveries.begin(deliveries.room(1).expect("room"), work.boxed()).expect("room");
        }
        all.wait().await;
        assert_eq!(*begun.lock().expect("no panic"), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn handlers_that_never_end_hold_up_a_bounded_number_of_deliveries() {
        let deliveries = Deliveries::new();
        let begun = Arc::new(AtomicU64::new(0));
        let mut accepted = 0;
        loop {
            let counted = Arc::clone(&begun);
            let work = async move {
                counted.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            };
            match deliveries.begin(deliveries.room(1).expect("room"), work.boxed()) {
                Ok(()) => accepted += 1,
                Err(Overloaded) if begun.load(Ordering::Relaxed) < MAX_IN_FLIGHT as u64 => {
                    tokio::task::yield_now().await;
                }
                Err(Overloaded) => break,
            }
        }
        assert_eq!(begun.load(Ordering::Relaxed), MAX_IN_FLIGHT as u64);
        assert_eq!(accepted, MAX_IN_FLIGHT + MAX_WAITING);
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
        deliveries.begin(whole, work.boxed()).expect("room");
        wait.await.expect("delivered");
        while deliveries.room(1).is_err() {
            tokio::task::yield_now().await;
        }
    }
}
