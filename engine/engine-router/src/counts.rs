//! How many calls there were, and how long they took.

use std::collections::HashMap;

/// Functions that are counted one by one; the others only in the sum.
const MAX_FUNCTIONS: usize = 4096;

/// Four steps for each doubling, from one microsecond to a day.
const BUCKETS: usize = 150;

/// Counts since the start.
#[derive(Debug, Clone)]
pub struct Counts {
    pub calls: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Handed to a queue.
    pub deferred: u64,
    pub by_function: HashMap<String, u64, ahash::RandomState>,
    pub workers_connected: u64,
    pub workers_left: u64,
    durations: [u64; BUCKETS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            calls: 0,
            succeeded: 0,
            failed: 0,
            deferred: 0,
            by_function: HashMap::default(),
            workers_connected: 0,
            workers_left: 0,
            durations: [0; BUCKETS],
        }
    }
}

impl Counts {
    pub(crate) fn called(&mut self, function_id: &str) {
        self.calls += 1;
        if let Some(count) = self.by_function.get_mut(function_id) {
            *count += 1;
        } else if self.by_function.len() < MAX_FUNCTIONS {
            self.by_function.insert(function_id.to_owned(), 1);
        }
    }

    pub(crate) fn ended(&mut self, succeeded: bool, micros: u64) {
        if succeeded {
            self.succeeded += 1;
        } else {
            self.failed += 1;
        }
        self.durations[bucket(micros)] += 1;
    }

    /// For each number of microseconds, how many calls took at most as long, and longer than the number before. Empty
    /// ones are left out.
    #[must_use]
    pub fn durations_us(&self) -> Vec<(u64, u64)> {
        (0..).zip(self.durations).filter(|(_, count)| *count > 0).map(|(at, count)| (limit(at), count)).collect()
    }
}

/// The bucket of the smallest limit that is not below.
fn bucket(micros: u64) -> usize {
    let (mut low, mut high) = (0, BUCKETS - 1);
    while low < high {
        let middle = low.midpoint(high);
        if limit(middle) < micros {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn limit(at: usize) -> u64 {
    // 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ..
    let at = at as u64;
    if at < 4 { at + 1 } else { (5 + (at - 4) % 4) << ((at - 4) / 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_and_each_duration_is_counted_below_its_limit() {
        for at in 1..BUCKETS {
            assert!(limit(at) > limit(at - 1), "{at}");
        }
        for micros in [0, 1, 5, 9, 1000, 123_456, 86_400_000_000] {
            let at = bucket(micros);
            assert!(limit(at) >= micros, "{micros}");
            assert!(at == 0 || limit(at - 1) < micros, "{micros}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
