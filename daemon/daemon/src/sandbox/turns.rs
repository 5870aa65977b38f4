//! Whose turn it is to run its first program.
//!
//! What a guest runs for the first time, an emulator translates (ARCHITECTURE.md, "A sandbox's life"). Machines that do so
//! at once take each other's caches, so as many begin as there are processors: fifty children have answered their first
//! command in 7/8 of the time (`make bench AREAS=fork`, with and without). A turn is short: a program that runs on is not
//! waited for.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Longest turn. `true` takes less than 80 ms in a clone, a processor to itself; Python is translated by then, if not
/// through.
const LONGEST: Duration = Duration::from_millis(150);

/// Nobody waits longer than this for a turn: on a machine that is busy with other things, turns help nobody.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

/// Over when dropped, or after [`LONGEST`].
#[derive(Debug)]
pub(crate) struct Turn {
    _over: oneshot::Sender<()>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from))))
    }

    /// `None` for who has waited as long as [`PATIENCE`]: it begins without a turn.
    pub(super) async fn take(&self) -> Option<Turn> {
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.0).acquire_owned()).await.ok()?.ok()?;
        let (over, ended) = oneshot::channel();
        tokio::spawn(pass(permit, ended));
        Some(Turn { _over: over })
    }
}

async fn pass(permit: OwnedSemaphorePermit, ended: oneshot::Receiver<()>) {
    let _ = tokio::time::timeout(LONGEST, ended).await;
    drop(permit);
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_when_it_is_dropped_or_when_it_is_too_long() {
        let turns = Turns(Arc::new(Semaphore::new(1)));
        let first = turns.take().await;
        let begun = Instant::now();
        let second = turns.take().await;
        assert_eq!((first.is_some(), begun.elapsed() >= LONGEST), (true, true));
        drop(second);
        timeout(LONGEST / 2, turns.take()).await.expect("the one before is over").expect("a turn");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = Turns(Arc::new(Semaphore::new(0)));
        let begun = Instant::now();
        assert!(turns.take().await.is_none());
        assert!(begun.elapsed() >= PATIENCE);
    }
}
