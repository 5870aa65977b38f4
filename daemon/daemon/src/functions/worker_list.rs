//! `worker::list`: a row for each worker of config.yaml.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::{List, Phase, Row};
use engine_protocol::is_builtin;
use serde_json::{Value, json};

use crate::worker::Workers;

pub(crate) async fn call(workers: Arc<Workers>, request: List) -> Result<Value, WorkerError> {
    let rows = workers.entries()?.into_iter().map(|entry| {
        let report = workers.handle(&entry.name).map(|handle| handle.report.borrow().clone());
        let builtin = entry.kind() == "builtin" && is_builtin(&entry.name);
        Row {
            worker_type: entry.kind().to_owned(),
            version: None,
            running: builtin
                || report.as_ref().is_some_and(|report| report.phase == Phase::Ready || report.pid.is_some()),
            pid: report.as_ref().and_then(|report| report.pid),
            status: if builtin { Phase::Ready } else { report.map_or(Phase::Stopped, |report| report.phase) },
            name: entry.name,
        }
    });
    let rows: Vec<Row> = rows.filter(|row| row.running || !request.running_only).collect();
    Ok(json!({ "workers": rows }))
}
