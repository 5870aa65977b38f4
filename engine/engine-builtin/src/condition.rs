//! Conditions: functions that are asked whether a trigger is to fire.

use engine_protocol::ErrorBody;

use crate::Raw;
use crate::call::Trace;
use crate::engine::{Engine, Invocation};

/// Asks a binding's `condition_function_id`, if it has one, with what its function would get. Only a literal `false` is
/// a no.
///
/// # Errors
/// The condition's own error: what that means depends on the worker, mostly a no and a line in the log.
pub async fn is_met(engine: &Engine, condition: Option<&str>, data: &Raw, trace: &Trace) -> Result<bool, ErrorBody> {
    let Some(function_id) = condition.filter(|id| !id.is_empty()) else { return Ok(true) };
    let invocation = Invocation { function_id: function_id.to_owned(), data: data.clone(), trace: trace.clone() };
    let answer = engine.call(invocation).await?;
    Ok(answer.is_none_or(|answer| answer.get() != "false"))
}
