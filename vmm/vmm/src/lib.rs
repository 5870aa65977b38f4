//! Describes a VM and holds its process.
//!
//! ```text
//! daemon ── Vm::spawn(VmSpec) ──► iii-vm ──► driver (vmm-qemu, vmm-krun) ──► guest
//!    ▲            │                 │ stdout: one VmEvent per line
//!    └── guest channel: one end of a socket pair, the other goes through iii-vm into the VM
//! ```
//! Knows how a VM is described and supervised. Knows no driver, image or guest protocol.
//!
//! Always true:
//! - The VM ends with its [`Vm`]: `iii-vm` holds a lifeline to us, on which it reads commands, and dies when it closes.
//! - Every [`VmCommand`] is answered once, in order.
//! - [`VmEvent::Exited`] comes once, and last.

mod choice;
mod command;
mod process;
mod snapshot;
mod spec;
mod sys;
mod wires;

pub use choice::{AccelChoice, DriverChoice, UnknownChoice, settle_choices};
pub use command::{
    CommandError, CommandFailed, FailureKind, MAX_COMMAND_BYTES, SnapshotPurpose, SnapshotRequest, SnapshotTaken,
    VmCommand,
};
pub use process::{SpawnError, Unrestorable, Vm, VmEvent, VmExit, VmStart};
pub use snapshot::{
    NoSnapshot, SNAPSHOT_FORMAT, SNAPSHOT_WORK_PREFIX, SavedDisk, SavedFile, SnapshotInfo, sweep_unfinished_snapshots,
};
pub use spec::{
    Egress, GatewayPort, HostTarget, MemoryMib, MemoryOutOfRange, NetworkSpec, ROOT_DISK_BYTES, SCRATCH_DISK_BYTES,
    TemplateUse, VcpuCount, VcpuCountInvalid, VmSpec,
};
pub use wires::Wires;
