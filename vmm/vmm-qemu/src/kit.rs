//! The kernel and initramfs every guest boots.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::QemuError;

/// A kit that is complete.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) identity: KitIdentity,
}

/// What tells one kit from another; part of a template's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KitIdentity {
    kernel_sha256: String,
    initramfs_sha256: String,
    /// Lengths as found: a kit that was half replaced has the wrong ones.
    #[serde(default)]
    lengths: (u64, u64),
}

impl Kit {
    /// # Errors
    /// [`QemuError::NoKit`] names the file that is missing.
    pub(crate) fn open(folder: &Path) -> Result<Self, QemuError> {
        let length = |path: &Path| {
            fs::metadata(path).map(|found| found.len()).map_err(|source| QemuError::NoKit { path: path.into(), source })
        };
        let (kernel, initramfs, about) = (folder.join("kernel"), folder.join("initramfs"), folder.join("kit.json"));
        let lengths = (length(&kernel)?, length(&initramfs)?);
        let no_kit = |source| QemuError::NoKit { path: about.clone(), source };
        let text = fs::read(&about).map_err(no_kit)?;
        let identity: KitIdentity = serde_json::from_slice(&text).map_err(|error| no_kit(error.into()))?;
        Ok(Self { kernel, initramfs, identity: KitIdentity { lengths, ..identity } })
    }
}
