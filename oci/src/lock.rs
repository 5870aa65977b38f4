//! Advisory file locks between processes, and between the tasks of one.
//!
//! A lock belongs to an open file (`flock`), so it ends with the process however that ends, and two tasks of one
//! process exclude each other as two processes do.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock someone else holds is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A held lock; dropping it releases it. The file stays: removing it would let two holders have "the" lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// A lock file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("could not lock {}", path.display())]
pub(crate) struct LockError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

impl Lock {
    /// Waits for the lock without blocking the thread; dropping the future gives up. `waiting` is called once,
    /// before the first wait.
    pub(crate) async fn acquire(path: &Path, waiting: impl FnOnce()) -> Result<Self, LockError> {
        let mut waiting = Some(waiting);
        loop {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(lock);
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The lock, or `None` while someone else holds it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>, LockError> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(LockError { path: path.to_owned(), source }),
        }
    }

    /// Blocks until the lock is free: only for locks that are held for moments.
    pub(crate) fn acquire_short(path: &Path) -> Result<Self, LockError> {
        let file = Self::open(path)?;
        file.lock().map_err(|source| LockError { path: path.to_owned(), source })?;
        Ok(Self { _file: file })
    }

    fn open(path: &Path) -> Result<File, LockError> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        file.map_err(|source| LockError { path: path.to_owned(), source })
    }
}
