//! Asks a guest to do things.
//!
//! ```text
//! Guest ─ requests ─► writer task ─► channel ─► guest-init
//!   ▲                                  │
//!   └── per-stream queues ◄─ reader task
//! ```
//! Knows the frames of `guest-protocol`. Knows no VM, image or sandbox.
//!
//! Always true:
//! - The guest is hostile: what breaks the protocol (a bad frame, output beyond its credit) ends the connection with
//!   [`GuestError::Broken`], and memory is bounded by the credit we gave, whatever the guest announces.
//! - Credit goes back when the consumer takes the bytes, so a slow consumer stops only its own producer.
//! - While a guest is [`Frozen`], this side sends nothing: requests wait. A guest that speaks all the same is heard.
//! - Dropping [`Exec`], [`Supervised`], a reader or a writer cancels its work in the guest.

mod connection;
mod freeze;
mod guest;
mod queue;
mod transfer;
mod writer;

pub use connection::GuestError;
pub use freeze::Frozen;
pub use guest::{Adopted, Exec, Guest, Input, Output, Supervised, SupervisedEvent};
pub use transfer::{FileReader, FileWriter};
