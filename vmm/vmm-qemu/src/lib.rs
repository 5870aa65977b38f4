//! Runs a [`vmm::VmSpec`] under QEMU, on KVM or by software emulation.
//!
//! ```text
//! Driver::start ── template there? ── yes ─► QEMU -incoming ◄─ state, memory (private mapping) ─► running
//!                        │ no                                                                        ▲
//!                        └─► build: boot, wait for Hello, stop, save ── failed? ─► cold boot ────────┘
//! Running::wait ── commands: pause, resume, snapshot ─► a folder from which others are restored, or a process to fork
//! ```
//! Knows QEMU's command line, its monitor protocol, templates and snapshots. Knows no network, image or guest protocol
//! beyond the first frame a booted guest sends.
//!
//! Always true:
//! - QEMU never outlives the thread that called [`Driver::start`]; one that was forked from another, this process.
//! - A template appears under its key complete or not at all, and holds nothing of any tenant.
//! - A snapshot appears under its name complete or not at all, and its source goes on whatever happens.

mod arguments;
mod driver;
mod error;
mod full_disk;
mod key;
mod layers;
mod nursery;
#[cfg(target_os = "linux")]
mod packets;
#[cfg(not(target_os = "linux"))]
#[path = "packets_other.rs"]
mod packets;
mod pages;
mod qcow2;
mod qmp;
mod ram;
mod running;
mod saved;
mod sparse;
mod sys;
mod take;
mod template;
mod tsc;
mod work;

pub use driver::{Driver, Program};
pub use error::QemuError;
pub use running::Running;
