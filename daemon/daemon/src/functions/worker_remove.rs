//! `worker::remove` and `worker::clear`: what is declared goes, and what is kept; each only with consent.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::Targets;
use serde_json::{Value, json};

use crate::worker::Workers;

pub(crate) async fn remove(workers: Arc<Workers>, request: Targets) -> Result<Value, WorkerError> {
    check("remove", &request)?;
    let removed = workers.remove(&request.names, request.all).await?;
    Ok(json!({ "removed": removed }))
}

pub(crate) async fn clear(workers: Arc<Workers>, request: Targets) -> Result<Value, WorkerError> {
    check("clear", &request)?;
    let bytes = workers.clear(&request.names, request.all).await?;
    Ok(json!({ "cleared_bytes": bytes }))
}

/// Consent first, then exactly one kind of target.
fn check(op: &'static str, request: &Targets) -> Result<(), WorkerError> {
    if !request.yes {
        return Err(WorkerError::ConsentRequired { op });
    }
    let missing = |reason| Err(WorkerError::MissingTarget { op, reason });
    match (request.names.is_empty(), request.all) {
        (true, false) => missing("give `names`, or `all: true`"),
        (false, true) => missing("give `names` or `all: true`, not both"),
        _ => Ok(()),
    }
}
