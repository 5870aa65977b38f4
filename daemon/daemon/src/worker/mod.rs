//! Declared workers: config.yaml says which there are, and each is kept running.
//!
//! ```text
//! store (config.yaml) ─► workers ─► supervisor, one task each ─► job ─► machine
//!                                        │
//!          watch ─ changes ─► process ◄──┴──► provision ─► guest
//! ```

mod disk;
mod environment;
mod host;
mod job;
mod lock;
mod logs;
mod manifest;
mod process;
mod project;
mod provision;
mod report;
mod source;
mod store;
mod supervisor;
mod wanted;
mod watch;
mod workers;

pub(crate) use disk::project_key;
pub(crate) use host::Host;
pub(crate) use logs::{Output, positions, tail};
pub(crate) use manifest::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB, FILE as MANIFEST};
pub(crate) use project::{validate_path, validate_text};
pub(crate) use report::Report;
pub(crate) use wanted::valid;
pub(crate) use workers::Workers;
