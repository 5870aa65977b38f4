//! A snapshot that is to run again: what its folder holds, and whether that is whole and fits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vmm::{SavedFile, SnapshotInfo};

use crate::error::{QemuError, at};
use crate::key::Key;
use crate::nursery::Birthplace;
use crate::sparse;

/// The driver's name in a snapshot and in events.
pub(crate) const DRIVER: &str = "qemu";

/// A snapshot as its folder describes it.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
    pub(crate) info: SnapshotInfo,
}

/// Its files, open.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) memory: PathBuf,
    pub(crate) memory_file: File,
    pub(crate) state: File,
}

impl Saved {
    /// # Errors
    /// [`QemuError::NoSnapshot`], or [`QemuError::UnfitSnapshot`] when another driver took it.
    pub(crate) fn open(folder: &Path) -> Result<Self, QemuError> {
        let info = SnapshotInfo::read(folder)?;
        if info.driver != DRIVER {
            return Err(QemuError::UnfitSnapshot { path: folder.to_owned(), differs: vec!["the driver"] });
        }
        let saved = Self { folder: folder.to_owned(), info };
        if saved.info.disks.is_empty() { Err(saved.damaged("it names no disk".to_owned())) } else { Ok(saved) }
    }

    /// Whether it fits, and has its disks.
    ///
    /// # Errors
    /// [`QemuError::UnfitSnapshot`] and [`QemuError::DamagedSnapshot`], which say what is wrong.
    pub(crate) fn check(&self, key: &Key, root_disk: &Path) -> Result<(), QemuError> {
        let mut differs = key.differences(&self.info.key);
        if root_disk != self.info.root_disk {
            differs.push("the image");
        }
        if !differs.is_empty() {
            return Err(QemuError::UnfitSnapshot { path: self.folder.clone(), differs });
        }
        for disk in &self.info.disks {
            let found = fs::metadata(self.folder.join(&disk.name));
            let found = found.map_err(|error| self.damaged(format!("{}: {error}", disk.name)))?.len();
            self.expect(&disk.name, found, disk.bytes)?;
        }
        Ok(())
    }

    /// Where its children are forked, if they are.
    ///
    /// # Errors
    /// [`QemuError::DamagedSnapshot`].
    pub(crate) fn birthplace(&self) -> Result<Option<Birthplace>, QemuError> {
        let place = self.info.nursery.clone().map(serde_json::from_value).transpose();
        place.map_err(|error| self.damaged(format!("its nursery is not described as it should be: {error}")))
    }

    /// What was saved. The state is checked always; reading the memory to its end is `verify`.
    ///
    /// # Errors
    /// [`QemuError::DamagedSnapshot`].
    pub(crate) fn machine(&self, verify: bool) -> Result<Machine, QemuError> {
        let memory_file = self.file("memory", self.info.memory_file, verify)?;
        let state = self.file("state", self.info.state_file, true)?;
        Ok(Machine { memory: self.folder.join("memory"), memory_file, state })
    }

    fn file(&self, name: &str, saved: Option<SavedFile>, verify: bool) -> Result<File, QemuError> {
        let saved = saved.ok_or_else(|| self.damaged(format!("{name} was not saved")))?;
        let path = self.folder.join(name);
        let file = File::open(&path).map_err(|error| self.damaged(format!("{name}: {error}")))?;
        self.expect(name, file.metadata().map_err(at(&path))?.len(), saved.bytes)?;
        if !verify {
            return Ok(file);
        }
        match saved.crc32 {
            Some(sum) if sum == sparse::checksum(&file).map_err(at(&path))? => Ok(file),
            Some(_) => Err(self.damaged(format!("{name} is not what was saved"))),
            None => Err(self.damaged(format!("{name} cannot be verified: it was saved without a checksum"))),
        }
    }

    fn expect(&self, name: &str, found: u64, expected: u64) -> Result<(), QemuError> {
        if found == expected {
            return Ok(());
        }
        Err(self.damaged(format!("{name} has {found} bytes, not {expected}")))
    }

    pub(crate) fn damaged(&self, reason: String) -> QemuError {
        QemuError::DamagedSnapshot { path: self.folder.clone(), reason }
    }

    /// Why the disks could not be taken over.
    pub(crate) fn not_linked(&self, run_dir: &Path, source: io::Error) -> QemuError {
        QemuError::InheritDisks { path: self.folder.clone(), run_dir: run_dir.to_owned(), source }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}
