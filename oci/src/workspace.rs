//! A directory for work in progress, which goes with its owner: at once when dropped, at the next sweep when killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::lock::Lock;

pub(crate) struct Workspace {
    directory: tempfile::TempDir,
    /// Held for the directory's whole life: how others see that its owner lives.
    _lock: Lock,
}

impl Workspace {
    /// Makes a workspace in the store `dir`, after removing those of dead processes.
    pub(crate) fn create(dir: &Path) -> Result<Self, StoreError> {
        // Held until the new directory is locked: a sweep cannot come between.
        let _no_sweep = Lock::acquire_short(&dir.join("lock"))?;
        sweep_locked(dir)?;
        let path = dir.join("tmp");
        let directory = tempfile::Builder::new().prefix("work-").tempdir_in(&path);
        let directory = directory.map_err(|source| StoreError { action: "create a directory in", path, source })?;
        let lock = Lock::acquire_short(&directory.path().join("lock"))?;
        Ok(Self { directory, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Removes the workspaces of dead processes from the store `dir`.
    pub(crate) fn sweep(dir: &Path) -> Result<(), StoreError> {
        let _no_create = Lock::acquire_short(&dir.join("lock"))?;
        sweep_locked(dir)
    }
}

fn sweep_locked(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("tmp");
    let entries = fs::read_dir(&path).map_err(|source| StoreError { action: "read", path, source })?;
    for entry in entries.flatten() {
        let orphan: PathBuf = entry.path();
        let outcome = match entry.file_type() {
            Ok(kind) if kind.is_dir() => match Lock::try_acquire(&orphan.join("lock")) {
                Ok(Some(_owner_is_dead)) => fs::remove_dir_all(&orphan),
                _ => continue,
            },
            // Written and renamed under the lock we hold: its writer is dead.
            Ok(_) => fs::remove_file(&orphan),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!(path = %orphan.display(), "removed what a dead process left"),
            Err(error) => tracing::warn!(path = %orphan.display(), %error, "could not remove what a dead process left"),
        }
    }
    Ok(())
}
