//! What waits to be sent: bounded by number and bytes, in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Batching;

pub(crate) const MAX_ITEMS: usize = 8192;
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Of one request: collectors take 4 MiB.
const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    more: Notify,
    dropped: AtomicU64,
}

struct Waiting<T> {
    items: VecDeque<(Arc<T>, usize)>,
    bytes: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let waiting = Waiting { items: VecDeque::new(), bytes: 0 };
        Self { waiting: Mutex::new(waiting), more: Notify::new(), dropped: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An item that does not fit is dropped, and counted.
    pub(crate) fn push(&self, item: Arc<T>, weight: usize) {
        let mut waiting = self.lock();
        if waiting.items.len() == MAX_ITEMS || waiting.bytes + weight > MAX_BYTES {
            drop(waiting);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += weight;
        waiting.items.push_back((item, weight));
        drop(waiting);
        self.more.notify_one();
    }

    /// The first items, which stay where they are.
    pub(super) fn front(&self, most: usize) -> Vec<Arc<T>> {
        let waiting = self.lock();
        let mut bytes = 0;
        let fits = |(at, (_, weight)): &(usize, &(Arc<T>, usize))| {
            bytes += weight;
            *at == 0 || bytes <= MAX_BATCH_BYTES
        };
        waiting.items.iter().take(most).enumerate().take_while(fits).map(|(_, (item, _))| Arc::clone(item)).collect()
    }

    /// The first `count` have arrived.
    pub(super) fn delivered(&self, count: usize) {
        let mut waiting = self.lock();
        for _ in 0..count {
            if let Some((_, weight)) = waiting.items.pop_front() {
                waiting.bytes -= weight;
            }
        }
    }

    /// The first `count` never will.
    pub(super) fn refused(&self, count: usize) {
        self.delivered(count);
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Nothing more is sent. How many items are lost by that.
    pub(super) fn give_up(&self) -> usize {
        let left = self.lock().items.len();
        self.refused(left);
        left
    }

    /// Items that were not and will not be sent.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until there is a whole batch, or any item and the interval has passed, or the end.
    pub(super) async fn wait(&self, batching: Batching, stop: &CancellationToken) {
        let filled = async {
            while self.lock().items.len() < batching.items {
                self.more.notified().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = filled => {}
            () = tokio::time::sleep(batching.interval) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_the_first_stay_first() {
        let queue = Queue::new();
        (0..MAX_ITEMS + 3).for_each(|number| queue.push(Arc::new(number), 1));
        assert_eq!(queue.dropped(), 3);
        assert_eq!(queue.front(2).iter().map(|item| **item).collect::<Vec<_>>(), [0, 1]);
        queue.delivered(1);
        queue.refused(1);
        assert_eq!((queue.dropped(), *queue.front(1)[0]), (4, 2));
        assert_eq!(queue.give_up(), MAX_ITEMS - 2);
        assert!(queue.front(1).is_empty());
    }

    #[test]
    fn bytes_are_bounded_in_the_queue_and_in_a_batch() {
        let queue = Queue::new();
        let large = MAX_BATCH_BYTES - 1;
        (0..MAX_BYTES / large + 2).for_each(|number| queue.push(Arc::new(number), large));
        assert!(queue.dropped() > 0);
        assert_eq!(queue.front(100).len(), 1);
    }
}
