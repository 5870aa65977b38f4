//! What is kept of anything that never ends: the newest, bounded by count, bytes and age.

use std::collections::VecDeque;
use std::sync::Arc;

/// What all items of one ring may weigh together.
const MAX_BYTES: usize = 128 * 1024 * 1024;

struct Kept<T> {
    item: Arc<T>,
    arrived_unix_nano: u64,
    weight: usize,
}

/// Items in the order they arrived.
pub(crate) struct Ring<T> {
    kept: VecDeque<Kept<T>>,
    bytes: usize,
    limit: usize,
    /// None: age does not matter.
    retention_nanos: Option<u64>,
}

impl<T> Ring<T> {
    pub(crate) fn new(limit: usize, retention_nanos: Option<u64>) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, limit, retention_nanos }
    }

    /// Takes new bounds, and drops what is beyond them.
    pub(crate) fn bound(&mut self, now_unix_nano: u64, limit: usize, retention_nanos: Option<u64>) {
        self.limit = limit;
        self.retention_nanos = retention_nanos;
        self.expire(now_unix_nano);
    }

    pub(crate) fn push(&mut self, now_unix_nano: u64, item: Arc<T>, weight: usize) {
        self.bytes += weight;
        self.kept.push_back(Kept { item, arrived_unix_nano: now_unix_nano, weight });
        self.expire(now_unix_nano);
    }

    /// Drops what is too old or too much.
    pub(crate) fn expire(&mut self, now_unix_nano: u64) {
        let oldest = self.retention_nanos.map_or(0, |retention| now_unix_nano.saturating_sub(retention));
        while self.kept.front().is_some_and(|first| {
            self.kept.len() > self.limit || self.bytes > MAX_BYTES || first.arrived_unix_nano < oldest
        }) {
            if let Some(gone) = self.kept.pop_front() {
                self.bytes -= gone.weight;
            }
        }
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> {
        self.kept.iter().map(|kept| &kept.item)
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn neither_count_nor_bytes_nor_age_are_exceeded(
            limit in 1_usize..20,
            pushes in prop::collection::vec((0_u64..50, 0_usize..MAX_BYTES), 0..60),
        ) {
            let mut ring = Ring::new(limit, Some(100));
            let mut now = 0;
            for (number, (later, weight)) in pushes.iter().enumerate() {
                now += later;
                ring.push(now, Arc::new((number, now)), *weight);
                prop_assert!(ring.len() <= limit);
                prop_assert!(ring.bytes <= MAX_BYTES);
                prop_assert!(ring.iter().all(|item| item.1 + 100 >= now));
                prop_assert_eq!(ring.iter().next_back().map(|item| item.0), Some(number));
            }
        }
    }

    #[test]
    fn narrower_bounds_drop_the_oldest_at_once() {
        let mut ring = Ring::new(10, None);
        (0..10).for_each(|number| ring.push(0, Arc::new(number), 1));
        ring.bound(0, 3, None);
        assert_eq!(ring.iter().map(|item| **item).collect::<Vec<_>>(), [7, 8, 9]);
        ring.clear();
        assert_eq!(ring.len(), 0);
    }
}
