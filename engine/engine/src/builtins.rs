//! The built-in workers by name: how each is made, and what it does for connections besides.

use std::sync::Arc;

use engine_builtin::{BoxFuture, Builtin, BuiltinError, Engine, Settings};
use futures_util::{FutureExt, TryFutureExt};
use serde_json::Value;
use tokio::sync::watch;
use tracing::debug;

use crate::access::{CheckRequest, TakeTelemetry};
use crate::hub::{Gauges, Request};

/// A built-in worker that was made, and not yet started.
pub(crate) struct Made {
    pub(crate) builtin: Arc<dyn Builtin>,
    pub(crate) telemetry: Option<TakeTelemetry>,
    pub(crate) gauges: Option<Gauges>,
    pub(crate) requests: Option<CheckRequest>,
    /// What the engine is to log: a filter, now and whenever it changes.
    pub(crate) level: Option<watch::Receiver<String>>,
}

impl Made {
    fn plain(builtin: Arc<dyn Builtin>) -> Self {
        Self { builtin, telemetry: None, gauges: None, requests: None, level: None }
    }
}

/// What a worker is made with.
pub(crate) struct Given {
    /// What is stored, or else the block of config.yaml.
    pub(crate) settings: Settings,
    /// The block of config.yaml: where what is stored cannot be listened on, that may do.
    pub(crate) declared: Option<Settings>,
}

/// One kind of built-in worker.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Of its settings.
    pub(crate) schema: fn() -> Value,
    /// Whether its settings are kept by the `configuration` worker, and followed.
    pub(crate) is_configurable: bool,
    pub(crate) make: fn(Engine, Given) -> BoxFuture<'static, Result<Made, BuiltinError>>,
}

/// A kind that does nothing for connections besides answering calls.
macro_rules! plain {
    ($worker:ident, $is_configurable:literal) => {
        Kind {
            name: $worker::NAME,
            schema: $worker::schema,
            is_configurable: $is_configurable,
            make: |engine, given| $worker::create(engine, given.settings).map_ok(Made::plain).boxed(),
        }
    };
}

/// All but `configuration`, which the others are made with.
const KINDS: &[Kind] = &[
    Kind {
        name: builtin_observability::NAME,
        schema: builtin_observability::schema,
        is_configurable: true,
        make: |engine, given| observability(engine, given.settings).boxed(),
    },
    plain!(builtin_state, true),
    plain!(builtin_pubsub, true),
    plain!(builtin_cron, true),
    plain!(builtin_queue, true),
    Kind {
        name: builtin_http::NAME,
        schema: builtin_http::schema,
        is_configurable: true,
        make: |engine, given| {
            async move {
                let worker: Arc<dyn Builtin> = builtin_http::Http::new(engine, given.settings, given.declared)?;
                Ok(Made::plain(worker))
            }
            .boxed()
        },
    },
    Kind {
        name: builtin_stream::NAME,
        schema: builtin_stream::schema,
        is_configurable: true,
        make: |engine, given| {
            async move {
                let worker = builtin_stream::Stream::create(engine, given.settings, given.declared).await?;
                Ok(Made::plain(Arc::new(worker)))
            }
            .boxed()
        },
    },
    plain!(builtin_bridge, false),
    plain!(builtin_exec, false),
    Kind {
        name: builtin_http_functions::NAME,
        schema: builtin_http_functions::schema,
        is_configurable: false,
        make: |engine, given| http_functions(engine, given.settings).boxed(),
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
        level: Some(worker.level()),
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

#[cfg(test)]
mod tests;
