//! A VM's two disks, before anything is started with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vmm::{ROOT_DISK_BYTES, SCRATCH_DISK_BYTES, VmSpec};

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("disk {path} is not there: {source}", path = path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("disk {path} has {found} bytes, not {expected}", path = path.display())]
    Size { path: PathBuf, found: u64, expected: u64 },
}

impl DiskError {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { path, .. } | Self::Size { path, .. } => {
                format!("remove {}: it is made again when it is needed", path.display())
            }
        }
    }
}

/// Both are there, as long as every guest expects them.
///
/// # Errors
/// [`DiskError`] names the file.
pub fn check_disks(spec: &VmSpec) -> Result<(), DiskError> {
    check_root_disk(spec)?;
    check(&spec.scratch_disk, SCRATCH_DISK_BYTES)
}

/// As [`check_disks`], for a VM whose writable disk comes from elsewhere.
///
/// # Errors
/// [`DiskError`] names the file.
pub fn check_root_disk(spec: &VmSpec) -> Result<(), DiskError> {
    check(&spec.root_disk, ROOT_DISK_BYTES)
}

fn check(path: &Path, expected: u64) -> Result<(), DiskError> {
    let file = fs::metadata(path).map_err(|source| DiskError::Missing { path: path.to_owned(), source })?;
    if file.len() == expected {
        return Ok(());
    }
    Err(DiskError::Size { path: path.to_owned(), found: file.len(), expected })
}
