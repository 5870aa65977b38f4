//! Runs a [`vmm::VmSpec`] on KVM with libkrun, which is linked into this program: nothing to install.
//!
//! ```text
//! iii-vm (supervisor, relay) ─ Driver::start ─► iii-vm --libkrun SPEC: enter ─► libkrun ─► guest
//!     3: guest channel, 4: Ethernet ──────────────┘      stdout: console, stderr: messages
//! ```
//! libkrun takes over the process that enters a VM and ends it with the guest, so the VM has a process of its own, and
//! its supervisor stays to tell how it ended. Knows libkrun's calls; knows no image, network or guest protocol.
//!
//! Always true:
//! - The VM's process never outlives the thread that called [`Driver::start`].
//! - Before its first instruction runs, the VM's process has given up new programs, connections and privileges.
//! - The guest sees our kernel, our init, two disks, one network device, one port and a console: no implicit init,
//!   no socket impersonation, no host directory.

#[cfg(target_os = "linux")]
mod confine;
#[cfg(not(target_os = "linux"))]
#[path = "confine_other.rs"]
mod confine;
mod driver;
mod error;
mod ffi;
mod machine;
mod sys;

pub use confine::ConfineError;
pub use driver::{Driver, Running};
pub use error::KrunError;
pub use machine::{ENTER_FLAG, enter};
