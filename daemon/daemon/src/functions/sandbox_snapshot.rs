//! `sandbox::snapshot`, `restore`, `fork`, `pause` and `resume`; `snapshot::list` and `delete`.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::snapshot::{Delete, Fork, Pause, Restore, Snapshot};
use serde::Serialize;
use serde_json::{Value, json};

use crate::functions::Nothing;
use crate::sandbox::Sandboxes;

fn answer(answer: impl Serialize) -> Result<Value, SandboxError> {
    serde_json::to_value(answer).map_err(|error| SandboxError::invalid(error.to_string()))
}

pub(crate) async fn snapshot(sandboxes: Arc<Sandboxes>, request: Snapshot) -> Result<Value, SandboxError> {
    answer(sandboxes.snapshot(request).await?)
}

pub(crate) async fn restore(sandboxes: Arc<Sandboxes>, request: Restore) -> Result<Value, SandboxError> {
    answer(sandboxes.restore(request).await?)
}

pub(crate) async fn fork(sandboxes: Arc<Sandboxes>, request: Fork) -> Result<Value, SandboxError> {
    answer(sandboxes.fork(request).await?)
}

pub(crate) async fn pause(sandboxes: Arc<Sandboxes>, request: Pause) -> Result<Value, SandboxError> {
    let id = sandboxes.pause(&request.sandbox_id).await?;
    Ok(json!({ "sandbox_id": id, "paused": true }))
}

pub(crate) async fn resume(sandboxes: Arc<Sandboxes>, request: Pause) -> Result<Value, SandboxError> {
    let id = sandboxes.resume(&request.sandbox_id).await?;
    Ok(json!({ "sandbox_id": id, "paused": false }))
}

pub(crate) async fn list(sandboxes: Arc<Sandboxes>, _: Nothing) -> Result<Value, SandboxError> {
    Ok(json!({ "snapshots": sandboxes.list_snapshots() }))
}

pub(crate) async fn delete(sandboxes: Arc<Sandboxes>, request: Delete) -> Result<Value, SandboxError> {
    let id = sandboxes.delete_snapshot(&request.snapshot)?;
    Ok(json!({ "snapshot_id": id, "deleted": true }))
}
