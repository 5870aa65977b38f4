//! How much waits for one peer, and how its producers wait until it is less.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Beyond this, whoever brings more waits first.
const ROOM_BYTES: usize = 4 * 1024 * 1024;

/// A producer waits no longer than this for one message: its pings have to be answered, and two peers that wait for each
/// other must not do so for ever.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// What a message counts for besides its payload.
pub(crate) const OVERHEAD: usize = 512;

/// Bytes that wait for somebody.
#[derive(Default)]
pub(crate) struct Pressure {
    bytes: AtomicUsize,
    gone: AtomicBool,
    less: Notify,
}

impl Pressure {
    /// Returns how much waits now.
    pub(crate) fn add(&self, bytes: usize) -> usize {
        self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    pub(crate) fn take(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > ROOM_BYTES && before - bytes <= ROOM_BYTES {
            self.less.notify_waiters();
        }
    }

    pub(crate) fn is_high(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > ROOM_BYTES && !self.gone.load(Ordering::Relaxed)
    }

    /// Nothing waits any more, and nobody is to wait.
    pub(crate) fn end(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.less.notify_waiters();
    }

    /// Waits until there is room, for a bounded time.
    pub(crate) async fn room(&self) {
        let waiting = async {
            loop {
                let less = self.less.notified();
                tokio::pin!(less);
                // From here on no notice is missed.
                less.as_mut().enable();
                if !self.is_high() {
                    return;
                }
                less.await;
            }
        };
        let _ = tokio::time::timeout(MAX_WAIT, waiting).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_producer_waits_until_there_is_room() {
        let pressure = Arc::new(Pressure::default());
        pressure.add(ROOM_BYTES);
        pressure.room().await;
        pressure.add(1);
        let taking = Arc::clone(&pressure);
        let begun = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            taking.take(1);
        });
        pressure.room().await;
        assert_eq!(begun.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_nor_for_one_who_has_gone() {
        let pressure = Pressure::default();
        pressure.add(2 * ROOM_BYTES);
        let begun = Instant::now();
        pressure.room().await;
        assert_eq!(begun.elapsed(), MAX_WAIT);
        pressure.end();
        pressure.room().await;
        assert_eq!(begun.elapsed(), MAX_WAIT);
    }
}
