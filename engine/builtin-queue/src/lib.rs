//! `iii-queue`: messages that are delivered at least once.
//!
//! ```text
//! iii::durable::publish ─► topic ─┬─► queue of function a ─► deliver, try again, give up ─► dead letters
//!                                 └─► queue of function b ─► ..                                  │
//! iii-queue::enqueue ───► named queue ──────────────────────► ..          redrive, discard ◄─────┘
//!
//! worker ─► functions ─► Broker ─┬─ store     (a file of this engine)
//!                                ├─ rabbitmq
//!                                ├─ redis     (topics only)
//!                                └─ bridge    (topics of another engine)
//! ```
//! Knows topics, queues and how a delivery ends. Knows no router and no worker; `iii-queue::enqueue` is for the router,
//! which turns a call with `action: enqueue` into a call of it.
//!
//! Always true:
//! - What was acknowledged is kept by the adapter until it is delivered, dead or discarded, over `kill -9`.
//! - Payloads in memory are bounded; what waits is in the adapter.
//! - No more deliveries of one queue are in flight than its `concurrency`; of a fifo queue, one.
//! - Of one group, no message is delivered before the one ahead of it has succeeded or is dead.
//! - Of several bindings of one function to one topic, the last one says how messages are delivered.
//! - Messages for a function that has unsubscribed stay for when it comes back. It gets copies of new ones for an hour;
//!   of those of one topic that have gone, the last 64 do.
//! - A delivery out of a named queue fails after the queue's `timeout_ms`, half an hour as a rule: handlers that hang keep
//!   a queue no longer than that. Whether such a handler goes on is not known; its message is delivered again.

mod bridge;
mod broker;
mod delivery;
mod functions;
mod message;
mod rabbitmq;
mod redis;
mod schema;
mod settings;
mod store;
mod subscribers;
mod worker;

use std::sync::Arc;

use engine_builtin::{Builtin, BuiltinError, Engine, Settings};

pub use schema::schema;

pub const NAME: &str = "iii-queue";

/// Opens the adapter; nothing is delivered before `start`.
///
/// # Errors
/// Settings that do not fit, with key and value; or an adapter that cannot be reached.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    let worker = worker::QueueWorker::create(engine, &settings).await?;
    Ok(worker)
}
