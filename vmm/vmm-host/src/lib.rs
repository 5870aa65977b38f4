//! The host as a driver finds it: whether KVM runs guests, which drivers can boot the kit's kernel, and how a VM's
//! process is held.
//!
//! ```text
//! KvmVerdict ┐
//! Kit ───────┼─► choose ─► driver and accelerator, and why
//! QEMU there?┘
//! ```
//! Knows `/dev/kvm`, the kit's files and child processes. Knows no driver's command line or library.
//!
//! Always true:
//! - A child started as a [`Process`] never outlives the thread that started it, and leaves no core dump.
//! - A guest can write at most [`CONSOLE_LIMIT_BYTES`] of console to the host's disk.

mod choice;
mod console;
mod disks;
mod forked;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest_memory;
mod kit;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kvm_guest;
#[cfg(all(target_os = "linux", not(target_arch = "x86_64")))]
#[path = "kvm_guest_other.rs"]
mod kvm_guest;
mod kvm_probe;
mod machine;
mod process;
mod qemu_program;
mod sys;

pub use choice::{Accel, Boots, Choice, ChoiceError, DriverKind, choose};
pub use console::{CONSOLE_LIMIT_BYTES, ConsoleEnd, describe};
pub use disks::{DiskError, check_disks, check_root_disk};
pub use forked::ForkedProcess;
pub use kit::{Kit, KitError, KitIdentity};
pub use kvm_probe::{KvmVerdict, cached_verdict, probe_in_this_process};
pub use machine::{cpu_model, kernel_release};
pub use process::{Manner, Process, ProcessError};
pub use qemu_program::{Origin, QemuProgram};
