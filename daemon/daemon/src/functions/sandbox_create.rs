//! `sandbox::create`: boots a machine and says its id.

use std::sync::Arc;

use daemon_api::SandboxError;
use daemon_api::sandbox::Create;
use serde_json::{Value, json};

use crate::sandbox::Sandboxes;

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Create) -> Result<Value, SandboxError> {
    let id = sandboxes.create(&request).await?;
    Ok(json!({ "sandbox_id": id, "image": request.image }))
}
