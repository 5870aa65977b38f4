//! Is PID 1 of every guest: mounts, configures, reaps, and serves requests.
//!
//! ```text
//! channel ─► wire (one reader, one locked writer) ─► a thread per request
//!                                                     ├─ adopt      identity, disks, network      (adopt, network, root)
//!                                                     ├─ exec       one program                   (exec, life)
//!                                                     ├─ supervise  one program, life after life  (supervise, life)
//!                                                     ├─ files      list, read, write, ...        (files)
//!                                                     └─ sync       a tar stream                  (sync)
//! reaper: the only caller of wait; tells each life when its process has ended
//! ```
//! Knows the guest's kernel and the frames of `guest-protocol`. Knows no host, driver or image format.
//!
//! Always true:
//! - No request can end this process: a panic in PID 1 ends the kernel. A request that panics fails alone.
//! - Before `Adopt`, everything that goes wrong is one line on the console: nobody else can be told.
//! - A program's output is read only as fast as the host takes it.

mod adopt;
pub mod boot;
mod exec;
mod files;
mod life;
mod network;
mod reaper;
mod root;
mod serve;
mod supervise;
mod sync;
mod sys;
mod users;
mod wire;

pub use serve::{Platform, Services, serve};
