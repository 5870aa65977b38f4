//! Every message a worker and the engine exchange, and their limits.
//!
//! ```text
//! worker ── {"type":"registerfunction",..} ──► engine
//!        ◄─ {"type":"invokefunction",..} ─────
//!        ── {"type":"invocationresult",..} ──►
//! ```
//! One JSON object per text frame. Payloads (`data`, `result`, `config`, ..) stay the raw JSON they arrived as: they are
//! routed, not understood, and large ones not even copied. Knows shapes. Knows no socket, router or worker.
//!
//! Always true:
//! - Decoding is lenient as the published SDKs need it: unknown fields are ignored, `null` is absent.
//! - A payload that [`decode`] returns is JSON, to the byte: what is not never reaches another worker.
//! - Encoding leaves absent optionals out, except where a peer cannot do without (`data` of an invocation).

mod builtin;
mod caller;
mod json;
mod known;
mod members;
mod message;
mod outbound;
mod payload;
mod shallow;

pub use builtin::is_builtin;
pub use caller::{BadPayload, with_caller};
pub use members::without_member;
pub use message::{
    Action, ChannelRef, DecodeError, Direction, ErrorBody, ErrorMessage, InvocationResult, InvokeFunction, Message,
    Reattach, RegisterFunction, RegisterTrigger, RegisterTriggerType, TriggerRegistrationResult, UnregisterFunction,
    UnregisterTrigger, UnregisterTriggerType, WorkerRegistered, decode, decode_frame, raw,
};
pub use outbound::Outbound;
pub use payload::Payload;

/// Largest message either side accepts.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Largest WebSocket frame either side accepts.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
