//! How a function is offered to the engine: its shapes published, its calls decoded, answered and logged.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use daemon_api::{SandboxError, WorkerError};
use engine_client::{Call, Client, ErrorBody, FunctionSpec};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tracing::{info, warn};

/// A failure as callers hear of it.
pub(crate) trait Failure: Send {
    fn bad_request(function_id: &str, reason: String) -> Self;
    fn code(&self) -> &'static str;
    fn into_body(self) -> ErrorBody;
}

impl Failure for SandboxError {
    fn bad_request(_: &str, reason: String) -> Self {
        Self::invalid(format!("request not understood: {reason}"))
    }

    fn code(&self) -> &'static str {
        self.kind.code()
    }

    fn into_body(self) -> ErrorBody {
        self.into_body()
    }
}

impl Failure for WorkerError {
    fn bad_request(function_id: &str, reason: String) -> Self {
        Self::BadRequest { function_id: function_id.to_owned(), reason }
    }

    fn code(&self) -> &'static str {
        self.code()
    }

    fn into_body(self) -> ErrorBody {
        self.into_body()
    }
}

/// What callers may know about a function before they call it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) id: &'static str,
    pub(crate) description: &'static str,
    pub(crate) default_timeout_ms: u64,
    /// Whether calling it twice is as good as calling it once; `None`: it is not said.
    pub(crate) idempotent: Option<bool>,
}

/// Offers functions over one client, all of them with the same state.
pub(crate) struct Offer<'a, S> {
    pub(crate) client: &'a Client,
    pub(crate) state: &'a Arc<S>,
    /// Of every function offered so far, as `worker::schema` answers.
    pub(crate) schemas: Vec<Value>,
}

impl<S: Send + Sync + 'static> Offer<'_, S> {
    pub(crate) fn function<Q, E, F, R>(&mut self, about: About, call: F)
    where
        Q: DeserializeOwned + JsonSchema + Send + 'static,
        E: Failure + 'static,
        F: Fn(Arc<S>, Q) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Value, E>> + Send + 'static,
    {
        let About { id, description, default_timeout_ms, idempotent } = about;
        let request_format = serde_json::to_value(schemars::schema_for!(Q)).ok();
        let mut metadata = json!({ "default_timeout_ms": default_timeout_ms });
        if let Some(idempotent) = idempotent {
            metadata["idempotent"] = idempotent.into();
        }
        self.schemas.push(json!({
            "function_id": id, "description": description, "request": request_format, "response": Value::Null,
            "default_timeout_ms": default_timeout_ms, "idempotent": idempotent,
        }));
        let spec = FunctionSpec {
            id: id.to_owned(),
            description: description.to_owned(),
            request_format,
            response_format: None,
            metadata: Some(metadata),
        };
        let state = Arc::clone(self.state);
        self.client.register(spec, move |request: Call| {
            let (state, call) = (Arc::clone(&state), call.clone());
            async move {
                let start = Instant::now();
                let (subject, result) = match decode::<Q, E>(id, &request.data) {
                    Ok((subject, question)) => (subject, call(state, question).await),
                    Err(error) => (String::new(), Err(error)),
                };
                report(id, &subject, start, &result);
                match result {
                    Ok(Value::Null) => Ok(None),
                    Ok(value) => Ok(RawValue::from_string(value.to_string()).ok()),
                    Err(error) => Err(error.into_body()),
                }
            }
        });
    }
}

/// The request, and the sandbox or worker it names, for the log.
fn decode<Q: DeserializeOwned, E: Failure>(function_id: &str, data: &RawValue) -> Result<(String, Q), E> {
    let text = if data.get().trim() == "null" { "{}" } else { data.get() };
    let bad = |error: serde_json::Error| E::bad_request(function_id, error.to_string());
    let value: Value = serde_json::from_str(text).map_err(bad)?;
    let subject = value["sandbox_id"].as_str().or_else(|| value["name"].as_str()).unwrap_or_default();
    let subject = subject.chars().filter(|c| !c.is_control()).take(64).collect();
    Ok((subject, serde_json::from_value(value).map_err(bad)?))
}

/// One line per call, with these fields and no others: code, environment and file contents are nobody's business.
fn report<E: Failure>(function_id: &str, subject: &str, start: Instant, result: &Result<Value, E>) {
    let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(_) => info!(function_id, subject, success = true, duration_ms, "call answered"),
        Err(error) => {
            warn!(function_id, subject, success = false, error_code = error.code(), duration_ms, "call failed");
        }
    }
}
