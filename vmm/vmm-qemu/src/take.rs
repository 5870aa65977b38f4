//! A snapshot of a running machine.
//!
//! ```text
//! runs   ── links to the disk's layers ── copy of the memory's file ── first copy of QEMU's own pages ─┐
//! paused ── devices and processors ── pages that changed meanwhile ── a new layer on the disk ◄────────┘
//! runs   ── checksums ── fsync ── snapshot.json ── rename        (only if it is to last: the memory's checksum, fsync)
//! ```
//! For children that start at once, and a QEMU that can be forked, nothing is copied:
//! ```text
//! runs   ── links to the disk's layers ──┐
//! paused ── nursery (nursery.rs) ── a new layer on the disk
//! runs   ── snapshot.json ── rename
//! ```
//! Whatever fails, the machine goes on as it was, and no folder is left. A process that is killed in the middle leaves a
//! folder with a name of its own kind, which [`vmm::sweep_unfinished_snapshots`] knows.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use vmm::{CommandFailed, FailureKind, SnapshotPurpose, SnapshotRequest, SnapshotTaken};

use crate::error::{QemuError, at};
use crate::key::Key;
use crate::layers::{self, Layers, MAX_LAYERS};
use crate::nursery::{self, Birthplace, Nursery, QemuEnds};
use crate::qmp::Monitor;
use crate::ram::{Copied, Ram};
use crate::work::{Work, private};

/// For each step of QEMU's. Stopping waits for what the disks are at.
const STEP_LIMIT: Duration = Duration::from_secs(30);

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
    #[error("it cannot be forked: {0}")]
    NoNursery(QemuError),
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
            Self::NoName { .. } | Self::Link { .. } | Self::Memory(_) | Self::NoNursery(_) | Self::Qemu(_) => {
                FailureKind::Failed
            }
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
    pub(crate) ends: QemuEnds,
    pub(crate) forking: Forking,
    /// Those that may have births left.
    pub(crate) nurseries: Vec<Nursery>,
}

/// Whether children can be forked from this QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forking {
    /// Not with this accelerator, or QEMU does not know how.
    Impossible,
    Unknown,
    Possible,
}

/// What a snapshot's children are to be made of.
enum Plan<'a> {
    Files { ram: Ram<'a>, memory: File, node: Node },
    Nursery { births: u32 },
}

/// What they are made of.
pub(crate) enum Content {
    Files { memory: File, copied: Copied },
    Nursery { place: Birthplace, nursery: Nursery },
}

/// Takes a snapshot. The machine is `paused` by command already, or runs.
pub(crate) fn take(
    pid: Pid,
    monitor: &mut Monitor,
    source: &mut Source,
    request: &SnapshotRequest,
    paused: bool,
) -> Result<SnapshotTaken, TakeError> {
    if source.disk_is_kept {
        return Err(TakeError::DiskIsKept);
    }
    if source.layers.count() >= MAX_LAYERS {
        return Err(TakeError::TooManyLayers);
    }
    monitor.during("a snapshot");
    let births = match request.purpose {
        SnapshotPurpose::Children(births) if may_fork(monitor, source)? => Some(births),
        SnapshotPurpose::Children(_) | SnapshotPurpose::Keeping => None,
    };
    match attempt(pid, monitor, source, request, births, paused) {
        Err(TakeError::NoNursery(error)) => {
            tracing::warn!(%error, "children are restored from files this time, which takes longer");
            attempt(pid, monitor, source, request, None, paused)
        }
        other => other,
    }
}

fn attempt(
    pid: Pid,
    monitor: &mut Monitor,
    source: &mut Source,
    request: &SnapshotRequest,
    births: Option<u32>,
    paused: bool,
) -> Result<SnapshotTaken, TakeError> {
    let began = Instant::now();
    let work = Work::begin(&request.folder)?;
    let link = |error| TakeError::Link { path: work.path.clone(), source: error };
    source.layers.link_into(&work.path).map_err(link)?;
    let base = source.memory.as_ref().map(File::try_clone).transpose().map_err(TakeError::Memory)?;
    let plan = match births {
        // A nursery must not know the layer that its source goes on to write: it is made later.
        Some(births) => Plan::Nursery { births },
        None => {
            let memory = private(&work.path.join("memory"))?;
            let bytes = u64::from(source.key.shape.memory_mib) << 20;
            let ram = Ram::find(pid, base.as_ref(), bytes).map_err(TakeError::Memory)?;
            ram.begin(&memory).and_then(|()| ram.refresh(&memory)).map_err(TakeError::Memory)?;
            Plan::Files { ram, memory, node: add_layer(monitor, source)? }
        }
    };

    let paused_at = Instant::now();
    let frozen = freeze(monitor, source, plan, &work.path);
    let stays = paused || (frozen.is_ok() && request.leave_paused);
    let resumed = if stays { Ok(()) } else { monitor.run("cont", Value::Null, deadline()) };
    let paused_us = u64::try_from(paused_at.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (content, node) = frozen?;
    let layers_below = source.layers.clone();
    source.layers.push(node.file);
    source.top_node = node.name;
    resumed?;

    let memory_bytes = work.finish(source, &layers_below, &content, request)?;
    let copied = match content {
        Content::Files { copied, .. } => copied,
        Content::Nursery { nursery, .. } => {
            source.nurseries.retain(|nursery| !nursery.is_over());
            source.nurseries.push(nursery);
            Copied::default()
        }
    };
    Ok(SnapshotTaken {
        paused_us,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        memory_bytes,
        touched_bytes: copied.private,
        copied_paused_bytes: copied.written,
        disk_layers: u32::try_from(layers_below.count()).unwrap_or(u32::MAX),
    })
}

/// QEMU is asked once.
fn may_fork(monitor: &mut Monitor, source: &mut Source) -> Result<bool, TakeError> {
    if source.forking == Forking::Unknown {
        let known = nursery::is_known(monitor, deadline())?;
        source.forking = if known { Forking::Possible } else { Forking::Impossible };
    }
    Ok(source.forking == Forking::Possible)
}

/// A layer that QEMU has opened and not put anywhere.
struct Node {
    name: String,
    file: PathBuf,
}

fn add_layer(monitor: &mut Monitor, source: &mut Source) -> Result<Node, TakeError> {
    let file = source.layers.make_top(&source.run_dir).map_err(at(&source.run_dir))?;
    source.nodes_made += 1;
    let node = Node { name: layers::node_name(source.nodes_made), file };
    let added = monitor.run("blockdev-add", layers::overlay(&node.name, &node.file, source.disk_is_kept), deadline());
    added.inspect_err(|_| drop(fs::remove_file(&node.file)))?;
    Ok(node)
}

/// What happens while the guest stands still. The disk comes last: it is what cannot be undone.
fn freeze(
    monitor: &mut Monitor,
    source: &mut Source,
    plan: Plan<'_>,
    work: &Path,
) -> Result<(Content, Node), TakeError> {
    let (kept, node) = match plan {
        Plan::Files { ram, memory, node } => (save_state(monitor, &ram, memory, work), node),
        Plan::Nursery { births } => {
            let content = open_nursery(monitor, source, births, work)?;
            (Ok(content), add_layer(monitor, source)?)
        }
    };
    let put_on_top = json!({ "node": source.top_node, "overlay": node.name });
    let done = kept.and_then(|content| {
        monitor.run("blockdev-snapshot", put_on_top, deadline())?;
        Ok(content)
    });
    if done.is_err() {
        let _ = monitor.run("blockdev-del", json!({ "node-name": node.name }), deadline());
        let _ = fs::remove_file(&node.file);
    }
    done.map(|content| (content, node))
}

fn stand_still(monitor: &mut Monitor) -> Result<(), TakeError> {
    monitor.run("stop", Value::Null, deadline())?;
    // A write that found no space would be tried again by every child.
    if monitor.holds(|name, data| name == "BLOCK_IO_ERROR" && data["action"] == "stop") {
        return Err(TakeError::HostDiskFull);
    }
    Ok(())
}

fn save_state(monitor: &mut Monitor, ram: &Ram<'_>, memory: File, work: &Path) -> Result<Content, TakeError> {
    stand_still(monitor)?;
    // `live`: otherwise QEMU gives up its disks, as if the machine went elsewhere.
    let state = json!({ "filename": work.join("state"), "live": false });
    monitor.run("xen-save-devices-state", state, deadline())?;
    let copied = ram.refresh(&memory).map_err(TakeError::Memory)?;
    Ok(Content::Files { memory, copied })
}

fn open_nursery(monitor: &mut Monitor, source: &mut Source, births: u32, work: &Path) -> Result<Content, TakeError> {
    stand_still(monitor)?;
    let nursery = nursery::open(monitor, work, births, source.ends, source.memory.as_ref(), deadline());
    let nursery = nursery.map_err(|error| match error {
        QemuError::Refused { .. } | QemuError::File { .. } => TakeError::NoNursery(error),
        error => error.into(),
    })?;
    let place = Birthplace {
        ends: source.ends,
        top_node: source.top_node.clone(),
        nodes_made: source.nodes_made,
        has_base: source.memory.is_some(),
    };
    Ok(Content::Nursery { place, nursery })
}

fn deadline() -> Instant {
    Instant::now() + STEP_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

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
