//! What a snapshot's folder says of itself, whatever driver took it.
//!
//! ```text
//! <folder>/snapshot.json   written last: a folder that has one is complete
//!          memory          guest memory, sparse; mapped privately by every child
//!          state           devices and processors
//!          nursery, base   instead of these two: a socket of a process that children are forked from, and what its memory
//!                          is a mapping of
//!          disk-0          layers of the writable disk, oldest first: hard links, each written by nobody any more
//!          disk-1.qcow2
//! .snapshot-…              incomplete; locked by whoever works on it
//! ```
//! Every file is counted by the file system: a snapshot, its source and its children can each be removed at any time.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{MemoryMib, VcpuCount};

/// Changes whenever the meaning of a snapshot's files changes.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// What the name of an incomplete snapshot begins with.
pub const SNAPSHOT_WORK_PREFIX: &str = ".snapshot-";

const ABOUT: &str = "snapshot.json";

/// A snapshot as its folder describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    pub format: u32,
    pub driver: String,
    /// `kvm` or `tcg`; a child runs with the same.
    pub accel: String,
    pub memory: MemoryMib,
    pub vcpus: VcpuCount,
    /// What the guest saw as its read-only disk, by path.
    pub root_disk: PathBuf,
    pub taken_unix_ms: u64,
    /// Neither, when children are forked from their source's process.
    pub memory_file: Option<SavedFile>,
    pub state_file: Option<SavedFile>,
    /// Oldest first.
    pub disks: Vec<SavedDisk>,
    /// What must be as it was for the machine to run again; the driver's own.
    pub key: Value,
    /// How children are forked, if they are; the driver's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nursery: Option<Value>,
}

/// Length and checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    pub bytes: u64,
    /// Over number and content of every 4 KiB page that is not all zeros: holes do not count. `None` for the memory of a
    /// snapshot that is not durable: its children start at once, and none verifies it.
    pub crc32: Option<u32>,
}

/// One layer of the writable disk. Its length is all that is checked: reading it whole would cost too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    pub name: String,
    pub bytes: u64,
}

/// Why a folder is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum NoSnapshot {
    #[error("there is no complete snapshot in {path}: {source}", path = path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("the snapshot in {path} is not described as it should be: {source}", path = path.display())]
    Garbled { path: PathBuf, source: serde_json::Error },
    #[error("the snapshot in {path} has format {found}, not {SNAPSHOT_FORMAT}", path = path.display())]
    OtherFormat { path: PathBuf, found: u64 },
}

impl NoSnapshot {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => None,
            Self::Garbled { .. } | Self::OtherFormat { .. } => Some("remove it and take another".to_owned()),
        }
    }
}

impl SnapshotInfo {
    /// Reads what `folder` says; its files are not looked at.
    ///
    /// # Errors
    /// [`NoSnapshot`].
    pub fn read(folder: &Path) -> Result<Self, NoSnapshot> {
        let path = || folder.to_owned();
        let text = fs::read(folder.join(ABOUT)).map_err(|source| NoSnapshot::Missing { path: path(), source })?;
        let garbled = |source| NoSnapshot::Garbled { path: path(), source };
        let value: Value = serde_json::from_slice(&text).map_err(garbled)?;
        match value["format"].as_u64() {
            Some(found) if found != u64::from(SNAPSHOT_FORMAT) => Err(NoSnapshot::OtherFormat { path: path(), found }),
            _ => serde_json::from_value(value).map_err(garbled),
        }
    }

    /// The file that makes a folder a snapshot.
    #[must_use]
    pub fn file(folder: &Path) -> PathBuf {
        folder.join(ABOUT)
    }
}

/// Removes what snapshots into `parent` left behind when their process was killed; those in the making are locked.
///
/// # Errors
/// `parent` cannot be listed.
pub fn sweep_unfinished_snapshots(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(SNAPSHOT_WORK_PREFIX.as_bytes()) {
            continue;
        }
        // Held until it is gone: nobody begins to work in it meanwhile.
        let lock = File::open(entry.path()).ok().map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
        if let Some(Ok(_lock)) = lock {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_snapshot_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(SnapshotInfo::read(folder.path()), Err(NoSnapshot::Missing { .. })));
        fs::write(folder.path().join(ABOUT), r#"{"format":1}"#).unwrap();
        assert!(matches!(SnapshotInfo::read(folder.path()), Err(NoSnapshot::Garbled { .. })));
        fs::write(folder.path().join(ABOUT), r#"{"format":9}"#).unwrap();
        assert!(matches!(SnapshotInfo::read(folder.path()), Err(NoSnapshot::OtherFormat { found: 9, .. })));
    }

    #[test]
    fn only_what_nobody_works_on_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".snapshot-dead", ".snapshot-busy", "kept"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let busy = File::open(folder.path().join(".snapshot-busy")).unwrap();
        let _busy = Flock::lock(busy, FlockArg::LockExclusiveNonblock).unwrap();
        sweep_unfinished_snapshots(folder.path()).unwrap();
        let left = |name: &str| folder.path().join(name).exists();
        assert_eq!((left(".snapshot-dead"), left(".snapshot-busy"), left("kept")), (false, true, true));
    }
}
