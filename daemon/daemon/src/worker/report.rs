//! What a worker's task tells: its report, for whoever asks, and its log.

use daemon_api::WorkerError;
use daemon_api::worker::Phase;
use guest_client::GuestError;
use tokio::sync::watch;
use tracing::warn;

use crate::machine::BootProgress;
use crate::worker::logs::Log;
use crate::worker::store::Entry;

/// What there is to know about a worker from outside its task.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) phase: Phase,
    pub(crate) detail: String,
    /// Bytes done and in all.
    pub(crate) progress: Option<(u64, u64)>,
    /// Why it is `Failed`, or was last.
    pub(crate) failure: Option<WorkerError>,
    /// Of `iii-vm`.
    pub(crate) pid: Option<u32>,
    pub(crate) driver: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) restarts: u32,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Preparing,
            detail: "starting".into(),
            progress: None,
            failure: None,
            pid: None,
            driver: None,
            kernel: None,
            restarts: 0,
        }
    }

    /// While an image is fetched, before there is a worker.
    pub(crate) fn of_image(image: &str, step: oci::Progress) -> Self {
        let detail = format!("image {image}: {}", format!("{:?}", step.phase).to_lowercase());
        let progress = (step.bytes_total > 0).then_some((step.bytes_done, step.bytes_total));
        Self { detail, progress, ..Self::new() }
    }
}

/// Tells of one worker.
pub(crate) struct Teller {
    pub(crate) entry: Entry,
    report: watch::Sender<Report>,
    pub(crate) log: Log,
}

impl Teller {
    pub(crate) fn new(entry: Entry, report: watch::Sender<Report>, log: Log) -> Self {
        Self { entry, report, log }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_modify(change);
    }

    pub(crate) fn say(&self, phase: Phase, detail: &str) {
        self.change(|report| {
            report.phase = phase;
            report.progress = None;
            detail.clone_into(&mut report.detail);
        });
    }

    pub(crate) fn fail(&self, error: WorkerError) {
        warn!(worker = self.entry.name, %error, "worker failed");
        self.log.note(&error.to_string());
        self.change(|report| {
            report.phase = Phase::Failed;
            report.detail = error.to_string();
            report.progress = None;
            report.failure = Some(error);
        });
    }

    /// A failure of this worker, with what was printed last.
    pub(crate) fn failure(&self, step: &str, reason: String, exit_code: Option<i32>) -> WorkerError {
        let last_words = if exit_code.is_some() { self.log.last_words() } else { Vec::new() };
        WorkerError::Spawn { worker: self.entry.name.clone(), step: step.to_owned(), reason, exit_code, last_words }
    }

    pub(crate) fn guest_failure(&self, step: &str, error: &GuestError) -> WorkerError {
        self.failure(step, error.to_string(), None)
    }

    pub(crate) fn progress(&self, step: BootProgress) {
        match step {
            BootProgress::Image(progress) => self.change(|report| {
                report.detail = format!("image: {:?}", progress.phase).to_lowercase();
                report.progress = (progress.bytes_total > 0).then_some((progress.bytes_done, progress.bytes_total));
            }),
            BootProgress::BuildingTemplate => {
                self.say(Phase::Preparing, "building the VM's template (once per machine)")
            }
            BootProgress::Booting => self.say(Phase::Preparing, "starting the VM"),
            BootProgress::Warning(message) => {
                warn!(worker = self.entry.name, message, "VM");
                self.log.note(&message);
            }
        }
    }
}
