//! Runs a [`vmm::VmSpec`] under QEMU, on KVM or by software emulation.
//!
//! ```text
//! Driver::start ── template there? ── yes ─► QEMU -incoming ◄─ state, memory (private mapping) ─► running
//!                        │ no                                                                        ▲
//!                        └─► build: boot, wait for Hello, stop, save ── failed? ─► cold boot ────────┘
//! ```
//! Knows QEMU's command line, its monitor protocol and templates. Knows no network, image or guest protocol
//! beyond the first frame a booted guest sends.
//!
//! Always true:
//! - QEMU never outlives the thread that called [`Driver::start`].
//! - A template appears under its key complete or not at all, and holds nothing of any tenant.

mod arguments;
mod driver;
mod error;
mod full_disk;
mod key;
mod qmp;
mod sys;
mod template;
mod tsc;

pub use driver::{Driver, Running};
pub use error::QemuError;
