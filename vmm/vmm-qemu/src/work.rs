//! A snapshot's folder in the making: complete under its name, or gone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use vmm::{
    MemoryMib, SNAPSHOT_FORMAT, SNAPSHOT_WORK_PREFIX, SavedFile, SnapshotInfo, SnapshotPurpose, SnapshotRequest,
    VcpuCount,
};

use crate::error::{QemuError, at};
use crate::layers::{self, Layers};
use crate::saved::DRIVER;
use crate::sparse;
use crate::take::{Content, Source, TakeError};

/// Ends QEMU's saved state: a description of it, with nothing in it. Without, QEMU complains when it is read.
const NO_DESCRIPTION: [u8; 5] = [6, 0, 0, 0, 0];

/// A snapshot in the making; removed unless it was finished.
pub(crate) struct Work {
    pub(crate) path: PathBuf,
    target: PathBuf,
    finished: bool,
    /// Tells others that somebody works here.
    lock: Flock<File>,
}

impl Work {
    pub(crate) fn begin(target: &Path) -> Result<Self, TakeError> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(TakeError::NoName { path: target.to_owned() });
        };
        if target.symlink_metadata().is_ok() {
            return Err(TakeError::Exists { path: target.to_owned() });
        }
        let name = format!("{SNAPSHOT_WORK_PREFIX}{}-{}", std::process::id(), name.to_string_lossy());
        let path = parent.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(at(&path))?;
        let locked = File::open(&path)
            .and_then(|folder| Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into()));
        match locked {
            Ok(lock) => Ok(Self { path, target: target.to_owned(), finished: false, lock }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(at(path)(error).into())
            }
        }
    }

    /// Completes the folder and gives it its name; returns what the memory takes on the disk.
    pub(crate) fn finish(
        mut self,
        source: &Source,
        layers: &Layers,
        content: &Content,
        request: &SnapshotRequest,
    ) -> Result<u64, TakeError> {
        let durable = request.purpose == SnapshotPurpose::Keeping;
        let failed = || at(&self.path);
        let files = match content {
            Content::Files { memory, .. } => Some((memory, self.complete_state()?)),
            Content::Nursery { .. } => None,
        };
        let nursery = match content {
            Content::Files { .. } => None,
            Content::Nursery { place, .. } => {
                Some(serde_json::to_value(place).map_err(|error| failed()(error.into()))?)
            }
        };
        let saved = |file: &File, with_checksum| saved_file(file, with_checksum).map_err(failed());
        let shape = &source.key.shape;
        let out_of_range = |reason: String| failed()(io::Error::other(reason));
        let info = SnapshotInfo {
            format: SNAPSHOT_FORMAT,
            driver: DRIVER.to_owned(),
            accel: shape.accel.name().to_owned(),
            memory: MemoryMib::new(shape.memory_mib).map_err(|error| out_of_range(error.to_string()))?,
            vcpus: VcpuCount::new(shape.vcpus).map_err(|error| out_of_range(error.to_string()))?,
            root_disk: source.root_disk.clone(),
            taken_unix_ms: unix_ms(),
            memory_file: files.as_ref().map(|(memory, _)| saved(memory, durable)).transpose()?,
            state_file: files.as_ref().map(|(_, state)| saved(state, true)).transpose()?,
            disks: layers.describe(&self.path).map_err(failed())?,
            key: serde_json::to_value(&source.key).map_err(|error| failed()(error.into()))?,
            nursery,
        };
        let text = serde_json::to_vec_pretty(&info).map_err(|error| failed()(error.into()))?;
        let mut about = private(&SnapshotInfo::file(&self.path))?;
        about.write_all(&text).map_err(failed())?;
        if durable {
            let all = files.iter().try_for_each(|(memory, state)| memory.sync_all().and_then(|()| state.sync_all()));
            let all = all.and_then(|()| about.sync_all());
            all.and_then(|()| layers::sync(&self.path, &info.disks)).map_err(failed())?;
            self.lock.sync_all().map_err(failed())?;
        }
        match fs::rename(&self.path, &self.target) {
            Ok(()) => self.finished = true,
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(TakeError::Exists { path: self.target.clone() });
            }
            Err(error) => return Err(failed()(error).into()),
        }
        if durable && let Some(parent) = self.target.parent() {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(at(parent))?;
        }
        let blocks = files.map(|(memory, _)| memory.metadata().map(|found| found.blocks())).transpose();
        Ok(blocks.map_err(at(&self.target))?.unwrap_or(0) * 512)
    }

    fn complete_state(&self) -> Result<File, QemuError> {
        let path = self.path.join("state");
        let mut state = OpenOptions::new().read(true).append(true).open(&path).map_err(at(&path))?;
        state.write_all(&NO_DESCRIPTION).map_err(at(&path))?;
        Ok(state)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

pub(crate) fn private(path: &Path) -> Result<File, QemuError> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(at(path))
}

fn saved_file(file: &File, with_checksum: bool) -> io::Result<SavedFile> {
    let crc32 = with_checksum.then(|| sparse::checksum(file)).transpose()?;
    Ok(SavedFile { bytes: file.metadata()?.len(), crc32 })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_snapshot_leaves_nothing_and_is_locked_while_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::begin(&folder.path().join("s")).unwrap();
        vmm::sweep_unfinished_snapshots(folder.path()).unwrap();
        assert!(work.path.is_dir());
        drop(work);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(matches!(Work::begin(folder.path()), Err(TakeError::Exists { .. })));
    }
}
