//! A call as a built-in worker sees it, and its answer.

use engine_protocol::ErrorBody;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::Raw;

/// The W3C trace context that a call was made in, as it arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    pub traceparent: Option<String>,
    pub baggage: Option<String>,
}

impl Trace {
    /// What a copy of it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        [&self.traceparent, &self.baggage].into_iter().flatten().map(String::len).sum()
    }
}

/// Someone calls a function of a built-in worker.
#[derive(Debug)]
pub struct Call {
    pub function_id: String,
    /// `null` where the caller gave none.
    pub data: Option<Raw>,
    pub trace: Trace,
    /// The worker that calls; none for calls that the engine makes itself.
    pub caller: Option<Uuid>,
}

/// `Ok(None)` is a function that returns nothing.
pub type Answer = Result<Option<Raw>, ErrorBody>;

/// How a call is answered.
pub enum Reply {
    /// At once: costs no task.
    Now(Answer),
    /// When this is done. It runs as a task of its own; its caller may have left by then.
    Later(BoxFuture<'static, Answer>),
}

impl Reply {
    pub fn later(answer: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

/// `function_not_found`: a worker is called by the name of a function that it does not have.
#[must_use]
pub fn no_function(worker: &str, function_id: &str) -> ErrorBody {
    ErrorBody::new("function_not_found", format!("{worker} has no function `{function_id}`"))
}

/// A call's payload as a type.
///
/// # Errors
/// `deserialization_error`, which names the function and what does not fit.
pub fn decode<T: DeserializeOwned>(call: &Call) -> Result<T, ErrorBody> {
    let text = call.data.as_ref().map_or("null", |data| data.get());
    serde_json::from_str(text)
        .map_err(|error| ErrorBody::new("deserialization_error", format!("{}: {error}", call.function_id)))
}

/// A result as a payload.
///
/// # Errors
/// `serialization_error`: a map key that is no string.
pub fn encode(result: &impl Serialize) -> Answer {
    engine_protocol::raw(result).map(Some).map_err(|error| ErrorBody::new("serialization_error", error.to_string()))
}
