//! What can go wrong before a guest runs, and what to do about it. For what goes wrong with a snapshot of one that does, see
//! `take.rs`.

use std::io;
use std::path::PathBuf;

use vmm::Unrestorable;
use vmm_host::{DiskError, ProcessError};

/// Why no VM runs.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("no space for a template in {path}: {free_mib} MiB free, {needed_mib} MiB needed", path = path.display())]
    NoSpace { path: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error("cannot use {path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    /// The clone's own disk: the template is none the worse, and the disk is neither the kit's nor the template's.
    #[error("the writable disk {path} cannot be filled: {source}", path = path.display())]
    Scratch { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("QEMU ended during {during}: {said}")]
    Ended { during: &'static str, said: String },
    #[error("QEMU refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
    #[error("QEMU's monitor broke during {during}: {source}")]
    Monitor { during: &'static str, source: io::Error },
    #[error("{what} took too long")]
    TooSlow { what: &'static str },
    #[error("{path} was replaced while it was restored", path = path.display())]
    Replaced { path: PathBuf },
    #[error("the guest's first frame is no Hello, but begins with {header:02x?}")]
    NotHello { header: [u8; 12] },
    #[error("the template in {path} is damaged: {reason}", path = path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    NoSnapshot(#[from] vmm::NoSnapshot),
    #[error("the snapshot in {path} cannot run here; changed since it was taken: {}", differs.join(", "), path = path.display())]
    UnfitSnapshot { path: PathBuf, differs: Vec<&'static str> },
    #[error("the snapshot in {path} is damaged: {reason}", path = path.display())]
    DamagedSnapshot { path: PathBuf, reason: String },
    #[error("the machine that it was to be forked from has ended, or takes no more requests")]
    SourceGone,
    #[error("it cannot be forked from {path}: {source}", path = path.display())]
    Fork { path: PathBuf, source: io::Error },
    #[error("the disks of the snapshot in {path} cannot be linked into {run_dir}: {source}", path = path.display(), run_dir = run_dir.display())]
    InheritDisks { path: PathBuf, run_dir: PathBuf, source: io::Error },
}

impl QemuError {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Disk(error) => Some(error.hint()),
            Self::NoSpace { path, needed_mib, .. } => {
                Some(format!("free {needed_mib} MiB on the file system of {}", path.display()))
            }
            Self::Scratch { path, source } if source.kind() == io::ErrorKind::StorageFull => {
                Some(format!("free space on the file system of {}", path.display()))
            }
            Self::NoSnapshot(error) => error.hint(),
            Self::UnfitSnapshot { .. } => Some("create it anew and take another snapshot".to_owned()),
            Self::SourceGone => Some("fork it again, if it still runs".to_owned()),
            Self::DamagedSnapshot { .. } => Some("remove it and take another".to_owned()),
            Self::InheritDisks { source, .. } if source.kind() == io::ErrorKind::CrossesDevices => {
                Some("keep snapshots on the file system of the run directories".to_owned())
            }
            Self::TooSlow { .. } => Some("the machine may be overloaded; the guest's console is in the log".to_owned()),
            _ => None,
        }
    }

    /// What it says of the snapshot that was to be restored, if it does.
    #[must_use]
    pub fn unrestorable(&self) -> Option<Unrestorable> {
        match self {
            Self::UnfitSnapshot { .. } => Some(Unrestorable::Unfit),
            Self::NoSnapshot(_) | Self::DamagedSnapshot { .. } => Some(Unrestorable::Damaged),
            _ => None,
        }
    }

    /// Whether a cold boot could still work where restoring or making a template did not.
    pub(crate) fn spares_cold_boot(&self) -> bool {
        !matches!(self, Self::Disk(_) | Self::Scratch { .. })
    }
}

/// Names the path in an error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> QemuError {
    let path = path.into();
    move |source| QemuError::File { path, source }
}
