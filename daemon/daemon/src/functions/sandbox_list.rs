//! `sandbox::list` and `sandbox::catalog::list`: what lives, and what could.

use std::sync::Arc;

use daemon_api::SandboxError;
use serde_json::Value;

use crate::functions::Nothing;
use crate::sandbox::Sandboxes;

pub(crate) async fn sandboxes(sandboxes: Arc<Sandboxes>, _: Nothing) -> Result<Value, SandboxError> {
    Ok(sandboxes.list())
}

pub(crate) async fn catalog(sandboxes: Arc<Sandboxes>, _: Nothing) -> Result<Value, SandboxError> {
    Ok(sandboxes.catalog().await)
}
