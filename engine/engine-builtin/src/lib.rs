//! What a built-in worker is, and what it may ask of the engine.
//!
//! ```text
//! engine ── call, bind, unbind, apply ──► Builtin   (state, queue, http, ..: a crate each)
//!        ◄── call, knows, pipe ────────── via Engine
//! ```
//! A built-in worker is a worker in the engine's own process: it offers functions and trigger types like any other, is
//! listed like any other, and others may stand in for its functions. Knows the two sides' shapes. Knows no worker, no
//! router and no socket.
//!
//! Always true:
//! - [`Builtin::bind`] and [`Builtin::unbind`] run under the router's lock: they change tables or spawn tasks, and never
//!   wait, nor use [`Engine`].
//! - The settings a worker is given are expanded and checked against its schema.

mod builtin;
mod call;
mod condition;
mod deliveries;
mod engine;
mod event;
mod log_limit;
mod name;
mod pipe;
mod standing;

pub use builtin::{Binding, Builtin, BuiltinError, Settings};
pub use call::{Answer, Call, Reply, Trace, decode, encode, no_function};
pub use condition::is_met;
pub use deliveries::{Deliveries, Limits, Overloaded, PER_BINDING, PER_LANE, PER_VM, Recipient, Room};
pub use engine::{Engine, EngineApi, Invocation, Stats};
pub use event::Event;
pub use log_limit::LogLimit;
pub use name::{MAX_NAME_BYTES, name, optional_name};
pub use pipe::{Item, PipeReader, PipeWriter, ReaderGone, pipe};
pub use standing::Standing;

pub use engine_protocol::{ChannelRef, ErrorBody, RegisterFunction, RegisterTriggerType};
pub use futures_util::future::BoxFuture;

/// A payload that is passed on as it is.
pub type Raw = Box<serde_json::value::RawValue>;
