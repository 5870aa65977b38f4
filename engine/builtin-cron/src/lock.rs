//! Who may run a job now.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use crate::redis_lock::{RedisLock, RedisLocks};

/// A lock could not be asked for.
#[derive(Debug, thiserror::Error)]
#[error("could not {what} at redis")]
pub(crate) struct LockError {
    pub(crate) what: &'static str,
    pub(crate) source: redis::RedisError,
}

/// Where locks are kept.
pub(crate) enum Locks {
    /// For this engine alone. They end with their holder, so they need no lifetime and no disk.
    InProcess(Held),
    Redis(RedisLocks),
}

/// The ids of the jobs that run.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<Mutex<HashSet<String>>>);

/// A job's lock, held.
pub(crate) enum Lock {
    InProcess(HeldLock),
    Redis(RedisLock),
}

impl Locks {
    /// The lock for a job's run at `due`; `None` while another run of it has the lock.
    pub(crate) async fn take(&self, job: &str, due: DateTime<Utc>) -> Result<Option<Lock>, LockError> {
        Ok(match self {
            Self::InProcess(held) => held.take(job).map(Lock::InProcess),
            Self::Redis(locks) => locks.take(job, due).await?.map(Lock::Redis),
        })
    }
}

impl Lock {
    /// Holds the lock for as long as `run` takes, however long that is, and lets go of it.
    pub(crate) async fn held_during<R>(self, run: impl Future<Output = R>) -> R {
        match self {
            Self::InProcess(_held) => run.await,
            Self::Redis(lock) => lock.held_during(run).await,
        }
    }
}

impl Held {
    fn take(&self, job: &str) -> Option<HeldLock> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.to_owned());
        free.then(|| HeldLock { held: self.clone(), job: job.to_owned() })
    }
}

pub(crate) struct HeldLock {
    held: Held,
    job: String,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}
