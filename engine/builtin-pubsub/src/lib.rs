//! `iii-pubsub`: messages to whoever listens now.
//!
//! ```text
//! publish ─► adapter ─┬─ local ─────────────────┬─► subscriptions of the topic ─► condition ─► handler
//!                     └─ redis: PUBLISH ─► .. ──┘         (a task each)
//! ```
//! Knows topics, subscriptions and where messages travel. Knows no queue: what nobody listens to is gone.
//!
//! Always true:
//! - A message reaches each subscription at most once, as the JSON it was published as.
//! - Deliveries begin in the order of their messages, and overlap. They are bounded as [`engine_builtin::Deliveries`]
//!   says. A message that there is no room for is dropped, and its publisher told where that is here
//!   (`publish_failed`); a delivery beyond the share of its binding or function is dropped alone.
//! - A handler is waited for 60 s at most; then its place is another's, whether or not it goes on.

mod pubsub;
mod redis;
mod settings;
mod subscriptions;

use std::sync::Arc;

use engine_builtin::{Builtin, BuiltinError, Engine, Settings};

pub use settings::schema;

/// As in config.yaml.
pub const NAME: &str = "iii-pubsub";

/// Of what it offers.
pub(crate) const TRIGGER_TYPE: &str = "subscribe";

/// Opens the adapter: a Redis must be there.
///
/// # Errors
/// Settings that do not fit; a Redis that cannot be reached.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    Ok(Arc::new(pubsub::PubSub::create(engine, settings).await?))
}
