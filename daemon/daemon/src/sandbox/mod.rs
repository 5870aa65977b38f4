//! Short-lived machines: who is alive, within which limits, and until when.

mod command;
mod forks;
mod registry;
mod snapshots;

pub(crate) use command::{argv, environment, stdin};
pub(crate) use registry::{Activity, Sandboxes, Seat};
