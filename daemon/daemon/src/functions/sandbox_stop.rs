//! `sandbox::stop`: ends a machine; waits for its end if asked to.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox::Stop;
use serde_json::{Value, json};

use crate::sandbox::Sandboxes;

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Stop) -> Result<Value, SandboxError> {
    let id = sandboxes.stop(&request.sandbox_id, request.wait.unwrap_or(false)).await?;
    Ok(json!({ "sandbox_id": id, "stopped": true }))
}
