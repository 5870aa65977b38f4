//! A snapshot of a running machine.
//!
//! ```text
//! runs   ── links to the disk's layers ── copy of the memory's file ── first copy of QEMU's own pages ─┐
//! paused ── devices and processors ── pages that changed meanwhile ── a new layer on the disk ◄────────┘
//! runs   ── checksums ── fsync ── snapshot.json ── rename        (only if it is to last: the memory's checksum, fsync)
//! ```
//! Whatever fails, the machine goes on as it was, and no folder is left. A process that is killed in the middle leaves a
//! folder with a name of its own kind, which [`vmm::sweep_unfinished_snapshots`] knows.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmm::{
    CommandFailed, FailureKind, MemoryMib, SNAPSHOT_FORMAT, SNAPSHOT_WORK_PREFIX, SavedFile, SnapshotInfo,
    SnapshotRequest, SnapshotTaken, VcpuCount,
};

use crate::error::{QemuError, at};
use crate::key::Key;
use crate::layers::{self, Layers, MAX_LAYERS};
use crate::qmp::Monitor;
use crate::ram::{Copied, Ram};
use crate::saved::DRIVER;
use crate::sparse;

/// For each step of QEMU's. Stopping waits for what the disks are at.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// Ends QEMU's saved state: a description of it, with nothing in it. Without, QEMU complains when it is read.
const NO_DESCRIPTION: [u8; 5] = [6, 0, 0, 0, 0];

/// Why a snapshot was not taken, or another command had no effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error("its writable disk is kept: what it goes on to write would be in the run directory, and lost with it")]
    DiskIsKept,
    #[error("it stands still, because a disk of the host is full")]
    HostDiskFull,
    #[error("its disk has {MAX_LAYERS} layers already, one for each snapshot it descends from")]
    TooManyLayers,
    #[error("{path} exists", path = path.display())]
    Exists { path: PathBuf },
    #[error("{path} names no folder", path = path.display())]
    NoName { path: PathBuf },
    #[error("its disks cannot be linked into {path}: {source}", path = path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error("cannot copy its memory: {0}")]
    Memory(io::Error),
    #[error(transparent)]
    Qemu(#[from] QemuError),
}

impl TakeError {
    /// The answer to the command.
    pub(crate) fn answer(&self, command: &str) -> CommandFailed {
        CommandFailed { command: command.to_owned(), kind: self.kind(), reason: self.to_string(), hint: self.hint() }
    }

    fn kind(&self) -> FailureKind {
        let full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::DiskIsKept => FailureKind::Unsupported,
            Self::HostDiskFull => FailureKind::HostDiskFull,
            Self::TooManyLayers => FailureKind::TooManyLayers,
            Self::Exists { .. } => FailureKind::Exists,
            Self::Link { source, .. } if source.kind() == io::ErrorKind::CrossesDevices => FailureKind::OtherFileSystem,
            Self::Link { source, .. } | Self::Memory(source) | Self::Qemu(QemuError::File { source, .. })
                if full(source) =>
            {
                FailureKind::NoSpace
            }
            Self::NoName { .. } | Self::Link { .. } | Self::Memory(_) | Self::Qemu(_) => FailureKind::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match (self.kind(), self) {
            (FailureKind::NoSpace, _) => Some("free some space where snapshots are kept".to_owned()),
            (FailureKind::HostDiskFull, _) => Some("free some space on the disk of III_HOME".to_owned()),
            (FailureKind::TooManyLayers, _) => {
                Some("copy what is needed into a machine that is created anew".to_owned())
            }
            (FailureKind::OtherFileSystem, _) => {
                Some("keep snapshots on the file system of the run directories".to_owned())
            }
            (FailureKind::Exists, _) => Some("choose another name, or remove it".to_owned()),
            (_, Self::Memory(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("`sysctl kernel.yama.ptrace_scope` should say 0 or 1".to_owned())
            }
            (_, Self::Qemu(error)) => error.hint(),
            _ => None,
        }
    }
}

/// What a running machine was made of, as far as its snapshots need it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) key: Key,
    pub(crate) root_disk: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) layers: Layers,
    pub(crate) disk_is_kept: bool,
    /// The file that its memory is a private mapping of; `None` for anonymous memory.
    pub(crate) memory: Option<File>,
    /// QEMU's name for the topmost layer, and how many names were given to others.
    pub(crate) top_node: String,
    pub(crate) nodes_made: u32,
}

/// Takes a snapshot. The machine is `paused` by command already, or runs.
pub(crate) fn take(
    pid: Pid,
    monitor: &mut Monitor,
    source: &mut Source,
    request: &SnapshotRequest,
    paused: bool,
) -> Result<SnapshotTaken, TakeError> {
    let began = Instant::now();
    if source.disk_is_kept {
        return Err(TakeError::DiskIsKept);
    }
    if source.layers.count() >= MAX_LAYERS {
        return Err(TakeError::TooManyLayers);
    }
    monitor.during("a snapshot");
    let work = Work::begin(&request.folder)?;
    let link = |error| TakeError::Link { path: work.path.clone(), source: error };
    source.layers.link_into(&work.path).map_err(link)?;
    let memory_path = work.path.join("memory");
    let memory = private(&memory_path)?;
    let bytes = u64::from(source.key.shape.memory_mib) << 20;
    let base = source.memory.as_ref().map(File::try_clone).transpose().map_err(TakeError::Memory)?;
    let ram = Ram::find(pid, base.as_ref(), bytes).map_err(TakeError::Memory)?;
    ram.begin(&memory).and_then(|()| ram.refresh(&memory)).map_err(TakeError::Memory)?;
    // A layer of the file has the links' names: it is described before another is put on top of it.
    let node = add_layer(monitor, source)?;

    let paused_at = Instant::now();
    let frozen = freeze(monitor, source, &ram, &memory, &work.path, &node);
    let stays = paused || (frozen.is_ok() && request.leave_paused);
    let resumed = if stays { Ok(()) } else { monitor.run("cont", Value::Null, deadline()) };
    let paused_us = u64::try_from(paused_at.elapsed().as_micros()).unwrap_or(u64::MAX);
    let layers_below = source.layers.clone();
    match &frozen {
        Ok(_) => {
            source.layers.push(node.file);
            source.top_node = node.name;
        }
        Err(_) => {
            let _ = monitor.run("blockdev-del", json!({ "node-name": node.name }), deadline());
            let _ = fs::remove_file(&node.file);
        }
    }
    let copied = frozen?;
    resumed?;

    let memory_bytes = work.finish(source, &layers_below, &memory, request)?;
    Ok(SnapshotTaken {
        paused_us,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        memory_bytes,
        touched_bytes: copied.private,
        copied_paused_bytes: copied.written,
        disk_layers: u32::try_from(layers_below.count()).unwrap_or(u32::MAX),
    })
}

/// A layer that QEMU has opened and not put anywhere.
struct Node {
    name: String,
    file: PathBuf,
}

fn add_layer(monitor: &mut Monitor, source: &mut Source) -> Result<Node, TakeError> {
    let file = source.layers.make_top(&source.run_dir).map_err(at(&source.run_dir))?;
    source.nodes_made += 1;
    let node = Node { name: format!("scratch-{}", source.nodes_made), file };
    let added = monitor.run("blockdev-add", layers::overlay(&node.name, &node.file, source.disk_is_kept), deadline());
    added.inspect_err(|_| drop(fs::remove_file(&node.file)))?;
    Ok(node)
}

/// What happens while the guest stands still. The disk comes last: it is what cannot be undone.
fn freeze(
    monitor: &mut Monitor,
    source: &Source,
    ram: &Ram<'_>,
    memory: &File,
    work: &Path,
    node: &Node,
) -> Result<Copied, TakeError> {
    monitor.run("stop", Value::Null, deadline())?;
    // A write that found no space would be tried again by every child.
    if monitor.holds(|name, data| name == "BLOCK_IO_ERROR" && data["action"] == "stop") {
        return Err(TakeError::HostDiskFull);
    }
    // `live`: otherwise QEMU gives up its disks, as if the machine went elsewhere.
    let state = json!({ "filename": work.join("state"), "live": false });
    monitor.run("xen-save-devices-state", state, deadline())?;
    let copied = ram.refresh(memory).map_err(TakeError::Memory)?;
    monitor.run("blockdev-snapshot", json!({ "node": source.top_node, "overlay": node.name }), deadline())?;
    Ok(copied)
}

fn deadline() -> Instant {
    Instant::now() + STEP_LIMIT
}

/// A snapshot in the making; removed unless it was finished.
struct Work {
    path: PathBuf,
    target: PathBuf,
    finished: bool,
    /// Tells others that somebody works here.
    lock: Flock<File>,
}

impl Work {
    fn begin(target: &Path) -> Result<Self, TakeError> {
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
    fn finish(
        mut self,
        source: &Source,
        layers: &Layers,
        memory: &File,
        request: &SnapshotRequest,
    ) -> Result<u64, TakeError> {
        let failed = || at(&self.path);
        let state_path = self.path.join("state");
        let mut state = OpenOptions::new().read(true).append(true).open(&state_path).map_err(at(&state_path))?;
        state.write_all(&NO_DESCRIPTION).map_err(failed())?;
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
            memory_file: saved_file(memory, request.durable).map_err(failed())?,
            state_file: saved_file(&state, true).map_err(failed())?,
            disks: layers.describe(&self.path).map_err(failed())?,
            key: serde_json::to_value(&source.key).map_err(|error| failed()(error.into()))?,
        };
        let text = serde_json::to_vec_pretty(&info).map_err(|error| failed()(error.into()))?;
        let mut about = private(&SnapshotInfo::file(&self.path))?;
        about.write_all(&text).map_err(failed())?;
        if request.durable {
            let all = memory.sync_all().and_then(|()| state.sync_all()).and_then(|()| about.sync_all());
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
        if request.durable
            && let Some(parent) = self.target.parent()
        {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(at(parent))?;
        }
        Ok(memory.metadata().map_err(at(&self.target))?.blocks() * 512)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn private(path: &Path) -> Result<File, QemuError> {
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

    #[test]
    fn a_full_disk_is_told_apart_from_other_failures() {
        let full = || io::Error::from_raw_os_error(nix::libc::ENOSPC);
        assert_eq!(TakeError::Memory(full()).kind(), FailureKind::NoSpace);
        assert_eq!(TakeError::from(at("m")(full())).kind(), FailureKind::NoSpace);
        assert_eq!(TakeError::Memory(io::ErrorKind::NotFound.into()).kind(), FailureKind::Failed);
        let elsewhere = TakeError::Link { path: PathBuf::new(), source: io::ErrorKind::CrossesDevices.into() };
        assert_eq!(elsewhere.kind(), FailureKind::OtherFileSystem);
    }
}
