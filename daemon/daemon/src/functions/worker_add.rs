//! `worker::add`: declares a worker, and tells how it comes up.

use std::sync::Arc;
use std::time::Duration;

use daemon_api::WorkerError;
use daemon_api::worker::{Add, Phase, Progress};
use engine_client::{ChannelRef, Client, Item};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::worker::{Report, Workers};

pub(crate) const DESCRIPTION: &str = "Adds a worker to config.yaml and starts it in a VM. For a folder, call worker::validate first. \
Do not add it again after ordinary edits: the folder is watched, and the worker restarts by itself. Add it again with `force: true` \
to start from a clean disk. A long installation goes on after the caller has stopped waiting: poll worker::status";

/// How long a worker may take to connect once its process runs, where the caller does not say.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_READY_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the last step may take to reach whoever watches.
const LAST_STEP: Duration = Duration::from_secs(2);

pub(crate) async fn call(workers: Arc<Workers>, request: Add) -> Result<Value, WorkerError> {
    let telling = Telling::start(workers.client(), request.progress.as_ref());
    let result = add(&workers, &request, &telling.steps).await;
    telling.finish().await;
    result
}

async fn add(workers: &Workers, request: &Add, steps: &Steps) -> Result<Value, WorkerError> {
    let added = workers.add(&request.source, request.force, request.reset_config, steps).await?;
    let mut ready = false;
    if let Some(handle) = &added.handle
        && request.wait.unwrap_or(true)
    {
        match wait_ready(&added.name, handle.report.clone(), ready_timeout(request.ready_timeout_ms), steps).await {
            Ok(is_ready) => ready = is_ready,
            Err(error) => {
                // A worker that was there before stays as it is: its owner may be mending it.
                if added.status == "installed" && !matches!(error, WorkerError::Cancelled { .. }) {
                    workers.roll_back(&added).await;
                }
                return Err(error);
            }
        }
    }
    let mut answer = json!({
        "name": added.name, "status": added.status, "awaited_ready": ready, "config_path": workers.config_path(),
    });
    if !added.warnings.is_empty() {
        answer["warnings"] = added.warnings.into();
    }
    Ok(answer)
}

pub(crate) fn ready_timeout(asked_ms: Option<u64>) -> Duration {
    asked_ms.map_or(READY_TIMEOUT, Duration::from_millis).min(MAX_READY_TIMEOUT)
}

/// Waits until the worker is ready (`true`), or its process has run for `patience` without (`false`).
pub(crate) async fn wait_ready(
    name: &str,
    mut reports: watch::Receiver<Report>,
    patience: Duration,
    steps: &Steps,
) -> Result<bool, WorkerError> {
    let cancelled = || WorkerError::Cancelled { worker: name.to_owned() };
    let mut deadline = None;
    loop {
        let report = reports.borrow_and_update().clone();
        steps.send_replace(Some(report.clone()));
        match report.phase {
            Phase::Ready => return Ok(true),
            Phase::Failed => return Err(report.failure.unwrap_or_else(cancelled)),
            Phase::Stopped | Phase::Stopping => return Err(cancelled()),
            // Installing takes as long as it takes.
            Phase::Preparing | Phase::Installing => deadline = None,
            Phase::Starting => {
                deadline.get_or_insert_with(|| Instant::now() + patience);
            }
        }
        let changed = async {
            match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, reports.changed()).await,
                None => Ok(reports.changed().await),
            }
        };
        match changed.await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(cancelled()),
            Err(_) => return Ok(false),
        }
    }
}

/// The latest step of an installation.
pub(crate) type Steps = watch::Sender<Option<Report>>;

/// Passes steps on to a channel, for callers who want to see them. Who reads slowly sees fewer.
pub(crate) struct Telling {
    pub(crate) steps: Steps,
    task: Option<JoinHandle<()>>,
}

impl Telling {
    pub(crate) fn start(client: &Client, to: Option<&ChannelRef>) -> Self {
        let (steps, receiver) = watch::channel(None);
        let task = to.map(|to| tokio::spawn(tell(client.clone(), to.clone(), receiver)));
        Self { steps, task }
    }

    pub(crate) async fn finish(self) {
        drop(self.steps);
        if let Some(task) = self.task {
            let _ = timeout(LAST_STEP, task).await;
        }
    }
}

async fn tell(client: Client, to: ChannelRef, mut steps: watch::Receiver<Option<Report>>) {
    let mut writer = match client.open_writer(&to).await {
        Ok(writer) => writer,
        Err(error) => return debug!(%error, "nobody hears of the progress"),
    };
    let mut last = None;
    while steps.changed().await.is_ok() {
        let Some(report) = steps.borrow_and_update().clone() else { continue };
        let step = Progress {
            phase: report.phase,
            message: report.detail,
            done: report.progress.map(|(done, _)| done),
            total: report.progress.map(|(_, total)| total),
        };
        if last.as_ref() == Some(&step) {
            continue;
        }
        let Ok(text) = serde_json::to_string(&step) else { continue };
        if writer.send(Item::Text(text)).await.is_err() {
            return;
        }
        last = Some(step);
    }
    let _ = writer.close().await;
}
