//! `worker::start` and `worker::stop`: runs what is declared, or rests it.

use std::sync::Arc;

use daemon_api::WorkerError;
use daemon_api::worker::{Start, Stop};
use serde_json::{Value, json};

use crate::functions::worker_add::{Steps, Telling, ready_timeout, wait_ready};
use crate::worker::Workers;

pub(crate) async fn start(workers: Arc<Workers>, request: Start) -> Result<Value, WorkerError> {
    let telling = Telling::start(workers.client(), request.progress.as_ref());
    let result = run(&workers, &request, &telling.steps).await;
    telling.finish().await;
    result
}

async fn run(workers: &Workers, request: &Start, steps: &Steps) -> Result<Value, WorkerError> {
    let handle = workers.start(&request.name).await?;
    let ready = match request.wait.unwrap_or(true) {
        true => {
            wait_ready(&request.name, handle.report.clone(), ready_timeout(request.ready_timeout_ms), steps).await?
        }
        false => false,
    };
    let pid = handle.report.borrow().pid;
    Ok(json!({ "name": request.name, "pid": pid, "awaited_ready": ready }))
}

pub(crate) async fn stop(workers: Arc<Workers>, request: Stop) -> Result<Value, WorkerError> {
    if !request.yes {
        return Err(WorkerError::ConsentRequired { op: "stop" });
    }
    workers.stop(&request.name).await?;
    Ok(json!({ "name": request.name, "stopped": true }))
}
