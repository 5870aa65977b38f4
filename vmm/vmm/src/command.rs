//! What a running VM can be asked for, and how it answers.
//!
//! One [`VmCommand`] per line of `iii-vm`'s standard input; each is answered by one event, in order:
//! [`VmEvent::Paused`], [`VmEvent::Resumed`], [`VmEvent::Snapshotted`] or [`VmEvent::CommandFailed`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Vm, VmEvent, VmExit};

/// Longest command `iii-vm` reads.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;

/// A request to a VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum VmCommand {
    /// The guest's processors stand still until [`VmCommand::Resume`]. Asking twice is asking once.
    Pause,
    Resume,
    Snapshot(SnapshotRequest),
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Does not exist yet; appears complete or not at all. On the file system of the VM's run directory.
    pub folder: PathBuf,
    /// The guest stays paused when the snapshot succeeded.
    pub leave_paused: bool,
    pub purpose: SnapshotPurpose,
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPurpose {
    /// It survives a crash of the host, and its memory has a checksum.
    Keeping,
    /// At most so many machines start from it, at once and while the source runs; then it is thrown away.
    Children(u32),
}

/// What a snapshot cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// How long the guest stood still for it.
    pub paused_us: u64,
    /// From the command to the complete folder.
    pub took_ms: u64,
    /// What the memory file takes on the disk. 0 for children that are forked, as the next two: nothing is copied.
    pub memory_bytes: u64,
    /// What the guest has written since it was booted or restored.
    pub touched_bytes: u64,
    /// The part of it that had to be copied while the guest stood still.
    pub copied_paused_bytes: u64,
    /// Layers of the writable disk in the snapshot; there is a limit.
    pub disk_layers: u32,
}

/// Why a command had no effect: the VM is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("cannot {command} the VM: {reason}")]
pub struct CommandFailed {
    /// As [`VmCommand::name`] says, empty for a line that was no command.
    pub command: String,
    pub kind: FailureKind,
    pub reason: String,
    pub hint: Option<String>,
}

/// For programs; the text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The line was no command.
    Unknown,
    /// This driver, or this kind of VM, cannot.
    Unsupported,
    /// The guest stands still because a disk of the host is full.
    HostDiskFull,
    /// The snapshot's disk is full.
    NoSpace,
    /// The writable disk has as many layers as it may have.
    TooManyLayers,
    /// There is something at the snapshot's place.
    Exists,
    /// Snapshot and VM must share a file system: disks are shared by hard links.
    OtherFileSystem,
    Failed,
}

impl VmCommand {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Snapshot(_) => "snapshot",
        }
    }

    /// The answer of a driver that cannot.
    #[must_use]
    pub fn unsupported_by(&self, driver: &str) -> VmEvent {
        VmEvent::CommandFailed(CommandFailed {
            command: self.name().to_owned(),
            kind: FailureKind::Unsupported,
            reason: format!("the driver {driver} does not know how"),
            hint: Some("start the VM with the driver `qemu`".to_owned()),
        })
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Failed(#[from] CommandFailed),
    /// [`Vm::next_event`] repeats it.
    #[error("the VM ended")]
    Ended(VmExit),
    #[error("iii-vm answered something else than was asked")]
    Confused,
}

impl CommandError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Failed(failed) => failed.hint.clone(),
            Self::Ended(VmExit::Failed { hint, .. } | VmExit::Unrestorable { hint, .. }) => hint.clone(),
            Self::Ended(VmExit::Stopped) | Self::Confused => None,
        }
    }
}

/// Each of these may be cancelled: the command is carried out all the same, its answer passed over later. What
/// `iii-vm` says meanwhile is kept for [`Vm::next_event`].
impl Vm {
    /// The guest's processors stand still.
    ///
    /// # Errors
    /// [`CommandError`]; the VM runs on unless it ended.
    pub async fn pause(&mut self) -> Result<(), CommandError> {
        match self.ask(&VmCommand::Pause).await? {
            VmEvent::Paused => Ok(()),
            _ => Err(CommandError::Confused),
        }
    }

    /// The guest's processors run again.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn resume(&mut self) -> Result<(), CommandError> {
        match self.ask(&VmCommand::Resume).await? {
            VmEvent::Resumed => Ok(()),
            _ => Err(CommandError::Confused),
        }
    }

    /// Saves the machine as it is.
    ///
    /// # Errors
    /// [`CommandError`]; the VM goes on as before unless it ended, and there is no folder.
    pub async fn snapshot(&mut self, request: SnapshotRequest) -> Result<SnapshotTaken, CommandError> {
        match self.ask(&VmCommand::Snapshot(request)).await? {
            VmEvent::Snapshotted(taken) => Ok(taken),
            _ => Err(CommandError::Confused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_flat_object() {
        let request =
            SnapshotRequest { folder: PathBuf::from("/s"), leave_paused: false, purpose: SnapshotPurpose::Keeping };
        let text = serde_json::to_string(&VmCommand::Snapshot(request)).unwrap();
        assert_eq!(text, r#"{"command":"snapshot","folder":"/s","leave_paused":false,"purpose":"keeping"}"#);
        assert_eq!(serde_json::from_str::<VmCommand>(r#"{"command":"pause"}"#).unwrap(), VmCommand::Pause);
        assert!(serde_json::from_str::<VmCommand>(r#"{"command":"explode"}"#).is_err());
    }

    #[test]
    fn a_refusal_names_the_command_and_the_driver() {
        let VmEvent::CommandFailed(failed) = VmCommand::Pause.unsupported_by("other") else { panic!("it refuses") };
        assert_eq!((failed.kind, failed.command.as_str()), (FailureKind::Unsupported, "pause"));
        assert_eq!(failed.to_string(), "cannot pause the VM: the driver other does not know how");
    }
}
