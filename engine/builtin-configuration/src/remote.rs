//! Entries that another engine keeps.

use std::time::Duration;

use engine_builtin::{Answer, ErrorBody};
use engine_client::{Call, CallError, Client, ClientConfig, FunctionSpec};
use serde::Serialize;
use serde_json::{Value, json};

/// How long the other engine may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Remote {
    client: Client,
}

impl Remote {
    pub(crate) fn connect(url: String) -> Self {
        let name = format!("configuration-bridge:{}", std::process::id());
        Self { client: Client::connect(ClientConfig { url, name, description: None }) }
    }

    pub(crate) async fn call(&self, function_id: &str, payload: &impl Serialize) -> Answer {
        self.client.call(function_id, payload, PATIENCE).await.map_err(|error| match error {
            CallError::Remote(body) => body,
            other => ErrorBody::new("ADAPTER_ERROR", other.to_string()),
        })
    }

    pub(crate) async fn read(&self, id: &str) -> Result<Option<Value>, ErrorBody> {
        let answer = match self.call("configuration::get", &json!({ "id": id })).await {
            Err(error) if error.code == "NOT_FOUND" => return Ok(None),
            answer => answer?,
        };
        let answer = answer.and_then(|answer| serde_json::from_str::<Value>(answer.get()).ok());
        Ok(answer.map(|answer| answer["value"].clone()))
    }

    /// Hears of every change there.
    pub(crate) fn follow(&self, changed: impl Fn(Value) + Send + Sync + 'static) {
        let function = format!("configuration-bridge::{}", std::process::id());
        let spec = FunctionSpec { id: function.clone(), ..FunctionSpec::default() };
        self.client.register(spec, move |call: Call| {
            if let Ok(event) = serde_json::from_str(call.data.get()) {
                changed(event);
            }
            async { Ok(None) }
        });
        self.client.register_trigger("configuration", &function, &json!({}));
    }
}
