//! `worker::validate`: the verdict on a manifest, without any effect.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::Validate;
use serde_json::Value;

use crate::worker::{Workers, validate_path, validate_text};

pub(crate) async fn call(workers: Arc<Workers>, request: Validate) -> Result<Value, WorkerError> {
    let verdict = match (request.manifest, request.path) {
        (Some(text), None) => validate_text(&text),
        (None, Some(path)) => validate_path(&workers.root().join(path)),
        _ => {
            let reason = "give exactly one of `manifest` and `path`".to_owned();
            return Err(WorkerError::BadRequest { function_id: "worker::validate".into(), reason });
        }
    };
    serde_json::to_value(verdict).map_err(|error| WorkerError::Internal { message: error.to_string() })
}
