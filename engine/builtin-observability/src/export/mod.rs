//! Sends telemetry on by OTLP, over gRPC or HTTP.
//!
//! ```text
//! push ──► Queue (bounded; what does not fit is counted) ──► task: batch, send, retry ──► collector
//! ```
//! An item leaves the queue when the collector has answered, so nothing is lost while a collector is away and the queue
//! has room.

mod convert;
mod queue;
mod target;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use convert::{Logs, Metrics, Traces};
pub(crate) use queue::Queue;
pub(crate) use target::{Protocol, Target, headers};
use transport::SendError;
pub(crate) use transport::{Roots, Transport, host_roots, http_client, post_json};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What stopping may take: after it, what is still queued is lost.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

/// One kind of telemetry, as OTLP sends it.
pub(crate) trait Signal: Send + Sync + 'static {
    type Item: Send + Sync + 'static;
    type Request: prost::Message + Default + Clone + 'static;
    type Response: prost::Message + Default + 'static;
    const NAME: &'static str;
    /// The last part of its HTTP path.
    const HTTP: &'static str;
    const GRPC: &'static str;

    fn request(items: &[Arc<Self::Item>]) -> Self::Request;

    /// How many items the collector would not have, and why.
    fn rejected(response: &Self::Response) -> Option<(i64, &str)>;
}

/// How items are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batching {
    pub(crate) items: usize,
    pub(crate) interval: Duration,
}

/// A queue, and the task that empties it. Whoever drops it stops the task without a flush.
pub(crate) struct Exporter<S: Signal> {
    queue: Arc<Queue<S::Item>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    abort: tokio::task::AbortHandle,
}

impl<S: Signal> Exporter<S> {
    /// Begins to send to a collector, which need not be there yet.
    pub(crate) fn start(transport: Transport, batching: Batching) -> Self {
        let queue = Arc::new(Queue::new());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let task = tasks.spawn(run::<S>(Arc::clone(&queue), transport, batching, stop.clone()));
        tasks.close();
        Self { queue, stop, tasks, abort: task.abort_handle() }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<S::Item>> {
        &self.queue
    }

    /// Sends what is queued, in [`FLUSH_GRACE`] at most, and ends.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH_GRACE, self.tasks.wait()).await.is_err() {
            self.abort.abort();
            self.tasks.wait().await;
        }
        let left = self.queue.give_up();
        if left > 0 {
            tracing::warn!(signal = S::NAME, left, "collector did not take the rest in time");
        }
    }
}

impl<S: Signal> Drop for Exporter<S> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

async fn run<S: Signal>(queue: Arc<Queue<S::Item>>, transport: Transport, batching: Batching, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    let mut is_away = false;
    loop {
        queue.wait(batching, &stop).await;
        let batch = queue.front(batching.items);
        if batch.is_empty() {
            if stop.is_cancelled() {
                return;
            }
            continue;
        }
        match transport.send::<S>(S::request(&batch)).await {
            Ok(()) => {
                queue.delivered(batch.len());
                pause = FIRST_PAUSE;
                if std::mem::take(&mut is_away) {
                    tracing::info!(signal = S::NAME, "collector takes telemetry again");
                }
            }
            Err(SendError::Refused(why)) => {
                queue.refused(batch.len());
                tracing::warn!(signal = S::NAME, items = batch.len(), why, "collector refused telemetry");
            }
            Err(SendError::Away(why)) => {
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(signal = S::NAME, why, "collector cannot be reached; telemetry is queued");
                }
                if stop.is_cancelled() {
                    return;
                }
                // Cancel safe: the batch is still in the queue.
                let _ = tokio::time::timeout(pause, stop.cancelled()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
