//! One task per worker: brings its VM up, keeps its process running, follows its source.
//!
//! ```text
//! Preparing ─► Installing ─► Starting ─► Ready        any ─ stop ─► Stopping ─► Stopped
//!     ▲            ▲            │ ▲         │
//!     │            │       ended│ └─ pause ─┤ ended, or the source has changed
//!     │            │            ▼           │
//!     └─ pause ────┴────────  Failed        └─ a dependency file has changed ─► Installing
//! ```
//! The VM stays over all of it but a changed manifest, its own end, and an installation that failed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon_api::WorkerError;
use daemon_api::worker::Phase;
use engine_client::Client;
use guest_client::{Guest, GuestError};
use guest_protocol::SuperviseRequest;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::boot_error::BootError;
use crate::machine::{BootProgress, Machine, Machines};
use crate::worker::job::Job;
use crate::worker::logs::Log;
use crate::worker::process::{Next, Process};
use crate::worker::provision::Provision;
use crate::worker::store::{Entry, EntrySource};
use crate::worker::watch::{Change, Watch};

/// Pause before a failed VM is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// How long a VM may take to end its programs and sync its disk.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long an engine may take to say whom it knows.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// What every worker of this daemon needs.
pub(crate) struct Host {
    pub(crate) machines: Arc<Machines>,
    pub(crate) client: Client,
    pub(crate) engine_port: u16,
    /// [`disk::project_key`]
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
    fn new() -> Self {
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

/// A worker that is kept running. Dropping it kills the VM.
pub(crate) struct Handle {
    pub(crate) report: watch::Receiver<Report>,
    guest: watch::Receiver<Option<Guest>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(crate) fn start(host: Arc<Host>, entry: Entry) -> Self {
        let (report, reports) = watch::channel(Report::new());
        let (guest, guests) = watch::channel(None);
        let stop = CancellationToken::new();
        let log = Log::open(host.logs(&entry.name));
        let supervisor = Supervisor { host, entry, report, guest, log, stop: stop.clone() };
        let task = tokio::spawn(supervisor.run());
        Self { report: reports, guest: guests, stop, task: Mutex::new(Some(task)) }
    }

    /// The guest, while there is one.
    pub(crate) fn guest(&self) -> Option<Guest> {
        self.guest.borrow().clone()
    }

    /// Ends it, in order, and waits until nothing of it runs.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How a life of the VM ended.
enum Ended {
    Stopped,
    /// The manifest says something else now.
    Reboot,
}

pub(crate) struct Supervisor {
    pub(crate) host: Arc<Host>,
    pub(crate) entry: Entry,
    report: watch::Sender<Report>,
    guest: watch::Sender<Option<Guest>>,
    pub(crate) log: Log,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(self) {
        let mut watch = match &self.entry.source {
            EntrySource::Local(folder) => Some(Watch::start(folder)),
            EntrySource::Image(_) | EntrySource::Builtin => None,
        };
        let mut pause = FIRST_PAUSE;
        while !self.stop.is_cancelled() {
            let begun = Instant::now();
            match self.life(&mut watch).await {
                Ok(Ended::Stopped) => break,
                Ok(Ended::Reboot) => continue,
                Err(error) => self.fail(error),
            }
            pause = if begun.elapsed() > MAX_PAUSE { FIRST_PAUSE } else { pause };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                // Whoever edits is mending it.
                _ = changed(&mut watch) => pause = FIRST_PAUSE,
            }
        }
        self.say(Phase::Stopped, "stopped");
        info!(worker = self.entry.name, "worker stopped");
    }

    /// One VM, from its boot to its end.
    async fn life(&self, watch: &mut Option<Watch>) -> Result<Ended, WorkerError> {
        self.say(Phase::Preparing, "reading what it is");
        let job = Job::of(&self.entry)?;
        let booted = self.stop.run_until_cancelled(self.boot(&job)).await;
        let Some(machine) = booted else { return Ok(Ended::Stopped) };
        let mut machine = machine?;
        let guest = machine.guest.clone();
        self.guest.send_replace(Some(guest.clone()));
        let provision = job.local().map(|(folder, plan)| Provision {
            supervisor: self,
            guest: &guest,
            folder,
            plan,
            image: machine.image_digest.to_string(),
        });
        let command = job.command(&machine.image_config, self.host.engine_port);
        let serving = async {
            let command = command?;
            self.serve(&guest, command, provision, watch).await
        };
        let ended = tokio::select! {
            ended = serving => ended,
            exit = machine.ended() => Err(self.failure("vm", BootError::ended(exit).explain(), None)),
            () = self.stop.cancelled() => Ok(Ended::Stopped),
        };
        self.guest.send_replace(None);
        if ended.is_ok() {
            self.say(Phase::Stopping, "the VM ends");
        }
        machine.stop(STOP_GRACE).await;
        self.change(|report| report.pid = None);
        ended
    }

    async fn boot(&self, job: &Job) -> Result<Machine, WorkerError> {
        let request = job.boot_request(&self.host, &self.entry, &|step| self.progress(step)).await?;
        let machine = self.host.machines.boot(request, &|step| self.progress(step)).await;
        let machine = machine.map_err(|error| job.boot_error(&self.entry.name, &error))?;
        info!(
            worker = self.entry.name,
            pid = machine.pid(),
            driver = machine.accel,
            restored = machine.restored,
            kernel = machine.kernel,
            boot_id = machine.boot_id,
            "VM of a worker is up"
        );
        self.log.note(&format!("VM up: {}, kernel {}", machine.accel, machine.kernel));
        self.change(|report| {
            report.pid = Some(machine.pid());
            report.driver = Some(machine.accel.clone());
            report.kernel = Some(machine.kernel.clone());
        });
        Ok(machine)
    }

    /// Source, dependencies, process; until something asks for another VM.
    async fn serve(
        &self,
        guest: &Guest,
        command: SuperviseRequest,
        provision: Option<Provision<'_>>,
        watch: &mut Option<Watch>,
    ) -> Result<Ended, WorkerError> {
        if let Some(provision) = &provision {
            provision.copy(&Change::Everything).await?;
        }
        loop {
            if let Some(provision) = &provision {
                provision.install().await?;
            }
            let process = Process { supervisor: self, guest, command: &command, provision: provision.as_ref() };
            match process.run(watch).await? {
                Next::Install => {}
                Next::Reboot => return Ok(Ended::Reboot),
            }
        }
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

    fn progress(&self, step: BootProgress) {
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

/// The next change, or never where nothing is watched.
pub(crate) async fn changed(watch: &mut Option<Watch>) -> Change {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
