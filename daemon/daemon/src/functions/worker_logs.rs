//! `worker::logs`: the last lines of both outputs, or those after a position.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::{Logs, LogsOf};
use serde_json::Value;

use crate::worker::{Output, Workers, positions, tail, valid};

const DEFAULT_LINES: u32 = 100;
const MAX_LINES: u32 = 1000;

pub(crate) async fn call(workers: Arc<Workers>, request: LogsOf) -> Result<Value, WorkerError> {
    let bad =
        |error: WorkerError| WorkerError::BadRequest { function_id: "worker::logs".into(), reason: error.to_string() };
    valid(&request.name).map_err(bad)?;
    let logs = workers.logs(&request.name);
    let known = logs.is_dir() || workers.entries()?.iter().any(|entry| entry.name == request.name);
    if !known {
        return Err(WorkerError::NotFound { name: request.name });
    }
    let count = request.tail.unwrap_or(DEFAULT_LINES).min(MAX_LINES) as usize;
    let after = request.after;
    let stdout = tail(&logs, Output::Stdout, count, after.map(|after| after.stdout), request.raw);
    let stderr = tail(&logs, Output::Stderr, count, after.map(|after| after.stderr), request.raw);
    let answer = Logs {
        name: request.name,
        logs_dir: logs.is_dir().then_some(logs),
        positions: positions(&stdout, &stderr),
        stdout: stdout.lines,
        stderr: stderr.lines,
    };
    serde_json::to_value(answer).map_err(|error| WorkerError::Internal { message: error.to_string() })
}
