//! Lets a program be a worker: register, call, reconnect.
//!
//! ```text
//! Client ── commands ──► session task ◄──► WebSocket ◄──► engine
//!    │                        │
//!    │                        └── a task per incoming call ──► Handler
//!    └── channels: a socket of their own each
//! ```
//! Knows the worker protocol. Knows no function of any worker.
//!
//! Always true:
//! - The client reconnects for ever, with growing pauses, and registers everything again.
//! - A call ends with an answer, its timeout, or [`CallError::Closed`] when the connection is lost under it.

mod channel;
mod client;
mod session;

pub use channel::{ChannelPair, ChannelReader, ChannelWriter, Item};
pub use client::{Call, CallError, Client, ClientConfig, FunctionSpec, Handler, HandlerResult};
pub use engine_protocol::{ChannelRef, ErrorBody};
