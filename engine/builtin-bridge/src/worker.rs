//! The worker: one connection to the other engine.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use engine_builtin::{
    BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, Invocation, Raw, RegisterFunction, Reply, Settings,
    Trace, decode, no_function,
};
use engine_client::{CallError, Client, ClientConfig, FunctionSpec};
use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::settings::{Bridged, DEFAULT_TIMEOUT, bridged};

/// As in config.yaml.
pub const NAME: &str = "iii-bridge";

const INVOKE: &str = "bridge.invoke";
const INVOKE_ASYNC: &str = "bridge.invoke_async";

/// When the log says that the other engine cannot be reached yet.
const QUIET_CONNECTING: Duration = Duration::from_secs(10);

/// # Errors
/// Settings that do not fit. The other engine need not be there.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    let bridged = bridged(settings, env::var("III_URL").ok(), &[INVOKE, INVOKE_ASYNC])?;
    let description = Some("Another engine, bridged.".to_owned());
    let client = Client::connect(ClientConfig { url: bridged.url.clone(), name: NAME.into(), description });
    Ok(Arc::new(Bridge { engine, client, bridged, stop: CancellationToken::new() }))
}

struct Bridge {
    engine: Engine,
    client: Client,
    bridged: Bridged,
    stop: CancellationToken,
}

#[derive(Deserialize)]
struct InvokeRequest {
    function_id: String,
    data: Option<Raw>,
    timeout_ms: Option<u64>,
}

impl Bridge {
    fn invoke(&self, function_id: String, data: Option<Raw>, timeout: Duration) -> Reply {
        let client = self.client.clone();
        Reply::later(async move { client.call(&function_id, &data, timeout).await.map_err(bridge_error) })
    }

    fn invoke_async(&self, function_id: String, data: Option<Raw>) -> Reply {
        let client = self.client.clone();
        Reply::later(async move {
            // Waits only when very many messages do already.
            match tokio::time::timeout(DEFAULT_TIMEOUT, client.call_void(&function_id, &data)).await {
                Ok(sent) => sent.map(|()| None).map_err(bridge_error),
                Err(_) => Err(bridge_error(CallError::Timeout { function_id, timeout: DEFAULT_TIMEOUT })),
            }
        })
    }

    fn expose(&self, local_function: &str, remote_function: &str) {
        let (engine, local_function) = (Arc::clone(&self.engine), local_function.to_owned());
        let spec = FunctionSpec {
            id: remote_function.to_owned(),
            description: format!("`{local_function}` of another engine."),
            ..FunctionSpec::default()
        };
        self.client.register(spec, move |call: engine_client::Call| {
            let function_id = local_function.clone();
            engine.call(Invocation { function_id, data: call.data, trace: Trace::default() })
        });
    }
}

fn bridge_error(error: CallError) -> ErrorBody {
    ErrorBody::new("bridge_error", error.to_string())
}

fn function(id: &str, description: &str, request: Option<Value>) -> RegisterFunction {
    RegisterFunction {
        id: id.to_owned(),
        description: Some(description.to_owned()),
        request_format: request.and_then(|schema| to_raw_value(&schema).ok()),
        response_format: None,
        metadata: None,
        invocation: None,
    }
}

fn invoke_format(timeout: bool) -> Value {
    let mut format = json!({
        "type": "object",
        "required": ["function_id"],
        "properties": {
            "function_id": { "type": "string", "description": "A function of the other engine." },
            "data": { "description": "Its payload." },
        },
    });
    if timeout {
        format["properties"]["timeout_ms"] = json!({ "type": ["integer", "null"], "minimum": 0, "default": 30_000 });
    }
    format
}

impl Builtin for Bridge {
    fn name(&self) -> &'static str {
        NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        let own = [
            function(
                INVOKE,
                "Calls a function of the bridged engine and returns its result.",
                Some(invoke_format(true)),
            ),
            function(
                INVOKE_ASYNC,
                "Calls a function of the bridged engine without waiting.",
                Some(invoke_format(false)),
            ),
        ];
        let forwards =
            self.bridged.forward.iter().map(|(id, forward)| {
                function(id, &format!("`{}` of the bridged engine.", forward.remote_function), None)
            });
        own.into_iter().chain(forwards).collect()
    }

    fn call(&self, call: Call) -> Reply {
        let is_async = call.function_id == INVOKE_ASYNC;
        if is_async || call.function_id == INVOKE {
            return match decode::<InvokeRequest>(&call) {
                Ok(InvokeRequest { function_id, data, .. }) if is_async => self.invoke_async(function_id, data),
                Ok(InvokeRequest { function_id, data, timeout_ms }) => {
                    self.invoke(function_id, data, timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis))
                }
                Err(error) => Reply::Now(Err(error)),
            };
        }
        match self.bridged.forward.get(&call.function_id) {
            Some(forward) => self.invoke(forward.remote_function.clone(), call.data, forward.timeout),
            None => Reply::Now(Err(no_function(NAME, &call.function_id))),
        }
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        for (remote, local) in &self.bridged.expose {
            self.expose(local, remote);
        }
        let (client, url, stop) = (self.client.clone(), self.bridged.url.clone(), self.stop.clone());
        tokio::spawn(async move {
            match stop.run_until_cancelled(client.connected(QUIET_CONNECTING)).await {
                Some(Ok(())) => info!(url, "bridged"),
                Some(Err(error)) => warn!(%error, "the other engine is not there yet, the bridge keeps trying"),
                None => {}
            }
        });
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.stop.cancel();
        Box::pin(self.client.clone().shutdown())
    }
}

#[cfg(test)]
mod tests;
