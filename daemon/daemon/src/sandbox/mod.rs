//! Short-lived machines: who is alive, within which limits, and until when.

mod command;
mod registry;

pub(crate) use command::{argv, environment, stdin};
pub(crate) use registry::{Activity, Sandboxes, Seat};
