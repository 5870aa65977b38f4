//! Whose turn it is, where doing everything at once takes longer than one after the other.
//!
//! A turn is short: who takes longer goes on without it, and another begins. And nobody waits for ever: on a machine that is
//! busy with other things, turns help nobody.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

#[derive(Debug, Clone)]
pub(crate) struct Turns {
    free: Arc<Semaphore>,
    longest: Duration,
    patience: Duration,
}

/// Over when dropped, or when it has taken too long.
#[derive(Debug)]
pub(crate) struct Turn {
    _over: oneshot::Sender<()>,
}

impl Turns {
    /// `at_once` turns, each over after `longest`; who has waited for one as long as `patience` begins without.
    pub(crate) fn new(at_once: usize, longest: Duration, patience: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(at_once)), longest, patience }
    }

    /// `None` for who has waited long enough.
    pub(crate) async fn take(&self) -> Option<Turn> {
        let permit = tokio::time::timeout(self.patience, Arc::clone(&self.free).acquire_owned()).await.ok()?.ok()?;
        let (over, ended) = oneshot::channel();
        tokio::spawn(pass(permit, ended, self.longest));
        Some(Turn { _over: over })
    }
}

/// As many as can compute at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

async fn pass(permit: OwnedSemaphorePermit, ended: oneshot::Receiver<()>, longest: Duration) {
    let _ = tokio::time::timeout(longest, ended).await;
    drop(permit);
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const LONGEST: Duration = Duration::from_millis(150);
    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_when_it_is_dropped_or_when_it_is_too_long() {
        let turns = Turns::new(1, LONGEST, PATIENCE);
        let first = turns.take().await;
        let begun = Instant::now();
        let second = turns.take().await;
        assert_eq!((first.is_some(), begun.elapsed() >= LONGEST), (true, true));
        drop(second);
        timeout(LONGEST / 2, turns.take()).await.expect("the one before is over").expect("a turn");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = Turns::new(0, LONGEST, PATIENCE);
        let begun = Instant::now();
        assert!(turns.take().await.is_none());
        assert!(begun.elapsed() >= PATIENCE);
    }
}
