//! The built-in workers by name: how each is made, and what it does for connections besides.

use std::sync::Arc;

use engine_builtin::{BoxFuture, Builtin, BuiltinError, Engine, Settings};
use futures_util::{FutureExt, TryFutureExt};
use serde_json::Value;
use tracing::debug;

use crate::access::{CheckRequest, TakeTelemetry};
use crate::hub::{Gauges, Request};

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
    ($worker:ident, $is_configurable:literal) => {
        Kind {
            name: $worker::NAME,
            schema: $worker::schema,
            is_configurable: $is_configurable,
            make: |engine, settings| $worker::create(engine, settings).map_ok(Made::plain).boxed(),
        }
    };
}

/// All but `configuration`, which the others are made with.
const KINDS: &[Kind] = &[
    Kind {
        name: builtin_observability::NAME,
        schema: builtin_observability::schema,
        is_configurable: true,
        make: |engine, settings| observability(engine, settings).boxed(),
    },
    plain!(builtin_state, true),
    plain!(builtin_pubsub, true),
    plain!(builtin_cron, true),
    plain!(builtin_http, true),
    plain!(builtin_bridge, false),
    plain!(builtin_exec, false),
    Kind {
        name: builtin_http_functions::NAME,
        schema: builtin_http_functions::schema,
        is_configurable: false,
        make: |engine, settings| http_functions(engine, settings).boxed(),
    },
];

async fn observability(engine: Engine, settings: Settings) -> Result<Made, BuiltinError> {
    let worker = builtin_observability::create(engine, settings).await?;
    let (frames, gauges) = (Arc::clone(&worker), Arc::clone(&worker));
    Ok(Made {
        telemetry: Some(Arc::new(move |frame| {
            if let Err(error) = frames.ingest(frame) {
                debug!(%error, "telemetry dropped");
            }
        })),
        gauges: Some(Box::new(move |worker| gauges.latest_metrics(&worker.to_string()))),
        ..Made::plain(worker)
    })
}

async fn http_functions(engine: Engine, settings: Settings) -> Result<Made, BuiltinError> {
    let worker = builtin_http_functions::create(engine, settings).await?;
    let checking = Arc::clone(&worker);
    let requests: CheckRequest = Arc::new(move |function_id, invocation| {
        let worker = Arc::clone(&checking);
        async move {
            let function = worker.check(&function_id, &invocation).await?;
            let request: Request = Arc::new(move |call| function.call(Some(call.data), call.trace));
            Ok(request)
        }
        .boxed()
    });
    Ok(Made { requests: Some(requests), ..Made::plain(worker) })
}

pub(crate) fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}
