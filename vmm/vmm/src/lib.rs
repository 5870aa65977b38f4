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
//! - The VM ends with its [`Vm`]: `iii-vm` holds a lifeline to us and dies when it closes.
//! - [`VmEvent::Exited`] comes once, and last.

mod choice;
mod process;
mod spec;
mod sys;
mod wires;

pub use choice::{AccelChoice, DriverChoice, UnknownChoice, settle_choices};
pub use process::{SpawnError, Vm, VmEvent, VmExit};
pub use spec::{
    Egress, GatewayPort, HostTarget, MemoryMib, MemoryOutOfRange, NetworkSpec, ROOT_DISK_BYTES, SCRATCH_DISK_BYTES,
    TemplateUse, VcpuCount, VcpuCountInvalid, VmSpec,
};
pub use wires::Wires;
