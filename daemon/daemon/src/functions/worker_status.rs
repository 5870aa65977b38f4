//! `worker::status`: how one worker is, its last words, and one next step.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::{Phase, Status, StatusOf};
use serde_json::Value;

use crate::worker::{Output, Workers, tail, valid};

/// Lines of each output that come along.
const TAIL: usize = 20;

pub(crate) async fn call(workers: Arc<Workers>, request: StatusOf) -> Result<Value, WorkerError> {
    let bad = |error: WorkerError| WorkerError::BadRequest {
        function_id: "worker::status".into(),
        reason: error.to_string(),
    };
    valid(&request.name).map_err(bad)?;
    let entry = workers.entries()?.into_iter().find(|entry| entry.name == request.name);
    let report = workers.handle(&request.name).map(|handle| handle.report.borrow().clone());
    let logs = workers.logs(&request.name);
    let lines = |output| tail(&logs, output, TAIL, None, false).lines;
    let (stdout_tail, stderr_tail) = (lines(Output::Stdout), lines(Output::Stderr));
    let worker_type = entry.as_ref().map_or("not-installed", |entry| entry.kind());
    let builtin = worker_type == "builtin";
    let phase = match &report {
        Some(report) => report.phase,
        None if builtin => Phase::Ready,
        None => Phase::Stopped,
    };
    let detail = match &report {
        Some(report) => report.detail.clone(),
        None if builtin => "part of the engine".into(),
        None if entry.is_some() => "stopped".into(),
        None => "not in config.yaml".into(),
    };
    let status = Status {
        installed: entry.is_some(),
        worker_type: worker_type.to_owned(),
        running: builtin || report.as_ref().is_some_and(|report| report.pid.is_some()),
        status: phase,
        pid: report.as_ref().and_then(|report| report.pid),
        version: None,
        driver: report.as_ref().and_then(|report| report.driver.clone()),
        kernel: report.as_ref().and_then(|report| report.kernel.clone()),
        restarts: report.as_ref().map_or(0, |report| report.restarts),
        detail,
        logs_dir: logs.is_dir().then_some(logs),
        hint: hint(&request.name, entry.is_some(), phase, stdout_tail.is_empty() && stderr_tail.is_empty()),
        stderr_tail,
        stdout_tail,
        name: request.name,
    };
    serde_json::to_value(status).map_err(|error| WorkerError::Internal { message: error.to_string() })
}

/// One next step.
fn hint(name: &str, installed: bool, phase: Phase, silent: bool) -> String {
    match phase {
        _ if !installed => {
            "add it: `iii worker add <folder or image>` (worker::add); `iii worker validate <folder>` checks first"
                .to_owned()
        }
        Phase::Ready => format!("`iii trigger engine::functions::list worker={name}` shows what it offers"),
        Phase::Preparing | Phase::Installing => "it is still being provisioned: ask again in a moment".to_owned(),
        Phase::Starting => {
            "its process runs: if it does not connect, check that it uses the address in III_URL, and its logs"
                .to_owned()
        }
        Phase::Stopped | Phase::Stopping if silent => {
            format!("it has not run yet: start it with `iii worker start {name}`")
        }
        Phase::Stopped | Phase::Stopping => format!("start it with `iii worker start {name}`"),
        Phase::Failed => {
            format!("read `iii worker logs {name}`, mend the cause, then `iii worker start {name}`")
        }
    }
}
