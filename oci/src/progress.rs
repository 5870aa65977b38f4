//! How far a pull has come, told to whoever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// One look at a running [`Store::ensure`](crate::Store::ensure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes done in this phase: compressed bytes, as the manifest counts them.
    pub bytes_done: u64,
    /// Bytes this phase will take; 0 where nobody knows.
    pub bytes_total: u64,
}

/// The stages of a pull, in their order; downloading and unpacking overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asking the source which image the reference means.
    Resolving,
    /// Another task or process is pulling the same image; its work will be used.
    Waiting,
    /// Fetching layers.
    Downloading,
    /// Decompressing, checking and merging layers.
    Unpacking,
    /// Writing the file system's metadata and flushing everything to disk.
    Finishing,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Resolving, Self::Waiting, Self::Downloading, Self::Unpacking, Self::Finishing];
}

/// The counters behind [`Progress`], shared by the tasks and threads of one pull.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Counters>);

#[derive(Default)]
struct Counters {
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    pub(crate) fn enter(&self, phase: Phase, bytes_total: u64) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(bytes_total, Ordering::Relaxed);
        let index = Phase::ALL.iter().position(|known| *known == phase).unwrap_or(0);
        self.0.phase.store(index as u8, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes bytes back: a failed attempt starts again.
    pub(crate) fn subtract(&self, bytes: u64) {
        self.0.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Progress {
        Progress {
            phase: Phase::ALL[usize::from(self.0.phase.load(Ordering::Relaxed))],
            bytes_done: self.0.done.load(Ordering::Relaxed),
            bytes_total: self.0.total.load(Ordering::Relaxed),
        }
    }
}
