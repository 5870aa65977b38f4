//! How many requests are worked on at the same time. The limit can change while they are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) struct Slots {
    free: Arc<Semaphore>,
    limit: Mutex<usize>,
    /// Slots that are in use and go when they are given back.
    excess: Arc<AtomicUsize>,
}

/// One request's. Given back when dropped.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    excess: Arc<AtomicUsize>,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(limit)), limit: Mutex::new(limit), excess: Arc::default() }
    }

    /// Waits for its turn, first come, first served.
    pub(crate) async fn take(&self) -> Slot {
        // The semaphore is never closed; were it, there would be no limit.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        Slot { permit, excess: Arc::clone(&self.excess) }
    }

    /// More can start at once; fewer, as soon as enough of those at work are done.
    pub(crate) fn resize(&self, limit: usize) {
        let mut current = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if limit > *current {
            let mut more = limit - *current;
            while more > 0 && self.take_excess() {
                more -= 1;
            }
            self.free.add_permits(more);
        } else {
            let fewer = *current - limit;
            let idle = self.free.forget_permits(fewer);
            self.excess.fetch_add(fewer - idle, Ordering::AcqRel);
        }
        *current = limit;
    }

    fn take_excess(&self) -> bool {
        take_one(&self.excess)
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    count.load(Ordering::Acquire) > 0
        && count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1)).is_ok()
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take()
            && take_one(&self.excess)
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn no_more_than_the_limit_and_a_change_counts_at_once() {
        let slots = Slots::new(2);
        let take = || slots.take().now_or_never();
        let (one, two) = (take().expect("a slot"), take().expect("a slot"));
        assert!(take().is_none());
        slots.resize(3);
        let three = take().expect("a slot");
        slots.resize(1);
        drop((one, two));
        assert!(take().is_none(), "one is still at work");
        drop(three);
        let one = take().expect("a slot");
        assert!(take().is_none());
        slots.resize(0);
        slots.resize(2);
        assert!(take().is_some());
        drop(one);
        let both = (take().expect("a slot"), take().expect("a slot"));
        assert!(take().is_none());
        drop(both);
    }
}
