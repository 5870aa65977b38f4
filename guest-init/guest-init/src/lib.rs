//! Is PID 1 of every guest: mounts, configures, reaps, and serves requests.
//!
//! ```text
//! channel ─► wire (one reader, one locked writer)
//!             ├─► the reader's thread
//!             │     ├─ adopt      identity, disks, network      (adopt, names, network, root)
//!             │     └─ renew      a child's own identity        (renew, names, network)
//!             └─► a thread per request (crew)
//!                   ├─ exec       one program                   (exec, life, spawn)
//!                   ├─ supervise  one program, life after life  (supervise, life, spawn)
//!                   ├─ files      list, read, write, ...        (files, upload)
//!                   └─ sync       a tar stream                  (sync, upload)
//! reaper: collects what has ended; tells each life when its process has
//! ```
//! Knows the guest's kernel and the frames of `guest-protocol`. Knows no host, driver or image format.
//!
//! Always true:
//! - No request can end this process: a panic in PID 1 ends the kernel. A request that panics fails alone.
//! - Before `Adopt`, everything that goes wrong is one line on the console: nobody else can be told.
//! - A program's output is read only as fast as the host takes it; an orphan's, whose host is gone because this guest is
//!   a child of the one that started it, as fast as it comes.

mod adopt;
pub mod boot;
mod crew;
mod exec;
mod files;
mod life;
mod names;
mod network;
mod reaper;
mod renew;
mod root;
mod serve;
mod spawn;
mod supervise;
mod sync;
mod sys;
mod upload;
mod users;
mod wire;

pub use serve::{Platform, Services, serve};
