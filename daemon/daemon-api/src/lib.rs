//! Names, shapes and error codes of every function the daemon offers.
//!
//! Knows JSON. Knows no VM, engine connection or file.
//!
//! Always true:
//! - An error code is never reworded and never reused: callers match on it.
//! - Unknown fields of a request are ignored, except in a worker's source; absent and `null` are the same.

pub mod sandbox;
mod sandbox_error;
pub mod snapshot;
pub mod worker;
mod worker_error;

pub use sandbox_error::{SandboxError, SandboxErrorKind};
pub use worker_error::WorkerError;
