//! A connection to the engine for the length of one command.

use std::time::Duration;

use engine_client::{CallError, Client, ClientConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::arguments::Address;
use crate::failure::Failure;

/// How long an engine elsewhere may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// The engine, as this command sees it.
#[derive(Clone)]
pub(crate) struct Connection(Client);

impl Connection {
    /// # Errors
    /// At once when nobody listens on a loopback address.
    pub(crate) async fn open(address: &Address) -> Result<Self, Failure> {
        Self::open_within(address, CONNECT).await
    }

    pub(crate) async fn open_within(address: &Address, patience: Duration) -> Result<Self, Failure> {
        let host = if address.address.contains(':') && !address.address.starts_with('[') {
            format!("[{}]", address.address)
        } else {
            address.address.clone()
        };
        let config = ClientConfig {
            url: format!("ws://{host}:{}", address.port),
            name: format!("iii-cli:{}", std::process::id()),
            description: None,
        };
        let client = Client::connect(config);
        client.connected(patience).await?;
        Ok(Self(client))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0
    }

    /// Calls a function and reads its answer.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        function: &str,
        request: &impl Serialize,
        patience: Duration,
    ) -> Result<A, Failure> {
        let answer = self.0.call(function, request, patience).await.map_err(|error| missing_daemon(function, error))?;
        let text = answer.as_ref().map_or("null", |answer| answer.get());
        serde_json::from_str(text).map_err(|error| Failure::new(format!("{function} answered something else: {error}")))
    }

    pub(crate) async fn ask(&self, function: &str, request: &Value, patience: Duration) -> Result<Value, Failure> {
        self.call(function, request, patience).await
    }

    pub(crate) async fn close(self) {
        self.0.shutdown().await;
    }
}

/// The engine may run without the daemon that serves this function.
fn missing_daemon(function: &str, error: CallError) -> Failure {
    let missing = matches!(&error, CallError::Remote(body) if body.code == "function_not_found");
    let failure = Failure::from(error);
    match function.split("::").next() {
        Some("worker") if missing => {
            failure.hint("the worker daemon is starting, or not running: see the engine's log")
        }
        Some("sandbox") if missing => {
            failure.hint("list `iii-sandbox` in config.yaml and restart the engine; it may also still be starting")
        }
        _ => failure,
    }
}
