//! What every worker of this daemon needs: machines, the engine, and where its things are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine_client::Client;
use serde_json::{Value, json};

use crate::machine::Machines;

/// How long an engine may take to say whom it knows.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// Shared by all workers of a project.
pub(crate) struct Host {
    pub(crate) machines: Arc<Machines>,
    pub(crate) client: Client,
    pub(crate) engine_port: u16,
    /// [`super::disk::project_key`]
    pub(crate) project: String,
}

impl Host {
    /// Where a worker's disk is, and what else is kept of it.
    pub(crate) fn folder(&self, worker: &str) -> PathBuf {
        self.machines.home().workers().join(&self.project).join(worker)
    }

    pub(crate) fn logs(&self, worker: &str) -> PathBuf {
        self.machines.home().logs().join(&self.project).join(worker)
    }

    /// How many functions the worker has registered over a connection made at or after `since_ms`.
    pub(crate) async fn connection(&self, worker: &str, since_ms: u64) -> Option<u64> {
        let question = json!({ "name": worker });
        let answer = self.client.call("engine::workers::info", &question, LOOK_PATIENCE).await.ok()??;
        let answer: Value = serde_json::from_str(answer.get()).ok()?;
        let worker = &answer["worker"];
        (worker["connected_at_ms"].as_u64()? >= since_ms).then(|| worker["function_count"].as_u64().unwrap_or(0))
    }
}
