//! One job: a task that waits for its next time, runs, and waits again.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use cron::Schedule;
use engine_builtin::{Engine, Invocation, LogLimit, Raw, Trace, is_met};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{Clock, Step, Wait};
use crate::lock::Locks;

/// How long a job sleeps before it looks at the clock again.
pub const MAX_SLEEP: Duration = Duration::from_secs(60);

/// What all jobs share.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) locks: RwLock<Arc<Locks>>,
    /// Ends jobs in the midst of a run: the worker stops.
    pub(crate) ended: CancellationToken,
    /// Of jobs that fail or are over.
    pub(crate) log: LogLimit,
}

pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) function_id: String,
    pub(crate) condition_function_id: Option<String>,
    pub(crate) schedule: Schedule,
}

/// What the function gets.
#[derive(Serialize)]
struct Payload<'a> {
    trigger: &'static str,
    job_id: &'a str,
    scheduled_time: String,
    actual_time: String,
}

impl Job {
    /// Runs at each of its times until it is retired. A run that has begun is brought to its end, unless the worker
    /// stops.
    pub(crate) async fn keep(self, host: Arc<Host>, retired: CancellationToken) {
        let mut last = None;
        loop {
            match retired.run_until_cancelled(self.next_time(&*host.clock, last)).await {
                Some(Some(due)) => {
                    self.run(&host, due).await;
                    last = Some(due);
                }
                Some(None) => {
                    let expression = self.schedule.source();
                    host.log.line(|| info!(job = self.id, expression, "the cron job has no more times"));
                    return;
                }
                None => return,
            }
        }
    }

    async fn next_time(&self, clock: &dyn Clock, last: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        let mut wait = Wait::begin(&self.schedule, last, clock.now())?;
        loop {
            match wait.step(clock.now(), MAX_SLEEP) {
                Step::Due(due) => return Some(due),
                Step::Over => return None,
                Step::Sleep(time) => tokio::time::sleep(time).await,
            }
        }
    }

    async fn run(&self, host: &Host, due: DateTime<Utc>) {
        let locks = Arc::clone(&host.locks.read().unwrap_or_else(PoisonError::into_inner));
        match locks.take(&self.id, due).await {
            Ok(Some(lock)) => {
                lock.held_during(host.ended.run_until_cancelled(self.call(host, due))).await;
            }
            Ok(None) => debug!(job = self.id, "the cron job is run elsewhere, it is skipped here"),
            Err(error) => host.log.line(|| {
                warn!(
                    job = self.id, %error, cause = %error.source, "the cron job is skipped: its lock could not be taken"
                );
            }),
        }
    }

    async fn call(&self, host: &Host, due: DateTime<Utc>) {
        let Some(data) = self.payload(due, host.clock.now()) else { return };
        // Nothing has caused it but time.
        let trace = Trace::default();
        match is_met(&host.engine, self.condition_function_id.as_deref(), &data, &trace).await {
            Ok(true) => {}
            Ok(false) => return debug!(job = self.id, "the cron job's condition is not met"),
            Err(error) => {
                return host.log.line(|| warn!(job = self.id, %error, "the cron job is skipped: its condition failed"));
            }
        }
        let call = host.engine.call(Invocation { function_id: self.function_id.clone(), data, trace });
        if let Err(error) = call.await {
            host.log.line(|| warn!(job = self.id, function = self.function_id, %error, "a cron job failed"));
        }
    }

    fn payload(&self, due: DateTime<Utc>, now: DateTime<Utc>) -> Option<Raw> {
        let payload = Payload {
            trigger: "cron",
            job_id: &self.id,
            scheduled_time: due.to_rfc3339(),
            actual_time: now.to_rfc3339(),
        };
        serde_json::value::to_raw_value(&payload).ok()
    }
}
