//! The built-in workers by name: how each is made, and what it does for connections besides.

use std::sync::Arc;

use engine_builtin::{BoxFuture, Builtin, BuiltinError, Engine, Settings};
use futures_util::{FutureExt, TryFutureExt};
use serde_json::Value;

use crate::access::{CheckRequest, TakeTelemetry};
use crate::hub::Gauges;

/// A built-in worker that was made, and not yet started.
pub(crate) struct Made {
    pub(crate) builtin: Arc<dyn Builtin>,
    pub(crate) telemetry: Option<TakeTelemetry>,
    pub(crate) gauges: Option<Gauges>,
    pub(crate) requests: Option<CheckRequest>,
}

impl Made {
    fn plain(builtin: Arc<dyn Builtin>) -> Self {
        Self { builtin, telemetry: None, gauges: None, requests: None }
    }
}

/// One kind of built-in worker.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Of its settings.
    pub(crate) schema: fn() -> Value,
    /// Whether its settings are kept by the `configuration` worker, and followed.
    pub(crate) is_configurable: bool,
    pub(crate) make: fn(Engine, Settings) -> BoxFuture<'static, Result<Made, BuiltinError>>,
}

/// A kind that does nothing for connections besides answering calls.
macro_rules! plain {
    ($worker:ident) => {
        Kind {
            name: $worker::NAME,
            schema: $worker::schema,
            is_configurable: true,
            make: |engine, settings| $worker::create(engine, settings).map_ok(Made::plain).boxed(),
        }
    };
}

/// All but `configuration`, which the others are made with.
const KINDS: &[Kind] = &[plain!(builtin_state), plain!(builtin_pubsub)];

pub(crate) fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}
