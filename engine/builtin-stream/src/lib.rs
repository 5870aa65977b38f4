//! `iii-stream`: items that subscribers see change.
//!
//! ```text
//! stream::set, ..  ─┬─► a function `stream::set(<stream>)` of a worker
//!                   └─► adapter: kv (a file), redis, bridge (another engine)
//!                          │ events
//!                         Hub ─┬─► subscriptions ─► outbox of each connection ─► WebSocket subscribers
//!                              └─► bindings of `stream` ─► handlers
//! ```
//! Knows items (stream, group, id), their events, and who wants to see them. Knows no router.
//!
//! Always true:
//! - An adapter's events come in the order of its writes; no event comes before its write is stored.
//! - A subscription begins with one `sync` event: what was there, and then every event after that. With the adapters kv
//!   and redis no event comes that the `sync` contains already; with bridge, and for streams that a worker's functions
//!   keep, an event may: it then says what the `sync` said.
//! - Events of one item reach a handler one after another, in their order; those of several items overlap. No write, no
//!   subscriber and no other handler waits for them. What waits is bounded as [`engine_builtin::Deliveries`] says; beyond
//!   that, events are lost, and the log says so. A handler is waited for 60 s at most.
//! - A subscriber that reads too slowly loses its oldest events, never a `sync`; what waits for it is bounded. One that
//!   takes nothing for 60 s is dropped.
//! - An item is 15 MiB at most, a name 1,024 bytes. A group of more than 16 MiB has no `sync`: its subscriptions begin
//!   without one, and the log says so.
//! - When a Redis was away, every subscription gets a new `sync`: nobody knows what was missed.
//! - A connection stays with the adapter it came to.

mod adapter;
mod bridge;
mod event;
mod functions;
mod hub;
mod kv;
mod order;
mod outbox;
mod redis;
mod schema;
mod server;
mod settings;
mod socket;
mod stream;
mod triggers;

use std::sync::Arc;

use engine_builtin::{Builtin, BuiltinError, Engine, Settings};

pub use schema::schema;
pub use stream::Stream;

/// As in config.yaml.
pub const NAME: &str = "iii-stream";

/// Opens the adapter. [`Stream::create`] also takes the address to fall back to.
///
/// # Errors
/// Settings that do not fit; an adapter that cannot be opened.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    Ok(Arc::new(Stream::create(engine, settings, None).await?))
}
