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

use std::sync::Arc;
use std::time::Duration;

use daemon_api::WorkerError;
use daemon_api::worker::Phase;
use guest_client::Guest;
use guest_protocol::SuperviseRequest;
use oci::Rootfs;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::machine::{BootError, Machine};
use crate::worker::host::Host;
use crate::worker::job::Job;
use crate::worker::logs::Log;
use crate::worker::process::{Next, Process};
use crate::worker::provision::Provision;
use crate::worker::report::{Report, Teller};
use crate::worker::store::{Entry, EntrySource};
use crate::worker::watch::{Change, Watch, changed};

/// Pause before a failed VM is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// How long a VM may take to end its programs and sync its disk.
const STOP_GRACE: Duration = Duration::from_secs(5);

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
        let supervisor = Supervisor { host, teller: Teller::new(entry, report, log), guest, stop: stop.clone() };
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

struct Supervisor {
    host: Arc<Host>,
    teller: Teller,
    guest: watch::Sender<Option<Guest>>,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(self) {
        let mut watch = match &self.teller.entry.source {
            EntrySource::Local(folder) => Some(Watch::start(folder)),
            EntrySource::Image(_) | EntrySource::Builtin => None,
        };
        let mut pause = FIRST_PAUSE;
        while !self.stop.is_cancelled() {
            let begun = Instant::now();
            match self.life(&mut watch).await {
                Ok(Ended::Stopped) => break,
                Ok(Ended::Reboot) => continue,
                Err(error) => self.teller.fail(error),
            }
            pause = if begun.elapsed() > MAX_PAUSE { FIRST_PAUSE } else { pause };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                // Whoever edits is mending it.
                _ = changed(&mut watch) => pause = FIRST_PAUSE,
            }
        }
        self.teller.say(Phase::Stopped, "stopped");
        info!(worker = self.teller.entry.name, "worker stopped");
    }

    /// One VM, from its boot to its end.
    async fn life(&self, watch: &mut Option<Watch>) -> Result<Ended, WorkerError> {
        self.teller.say(Phase::Preparing, "reading what it is");
        let job = Job::of(&self.teller.entry)?;
        let booted = self.stop.run_until_cancelled(self.boot(&job)).await;
        let Some(machine) = booted else { return Ok(Ended::Stopped) };
        let (mut machine, image) = machine?;
        let guest = machine.guest.clone();
        self.guest.send_replace(Some(guest.clone()));
        let provision = job.local().map(|(folder, plan)| Provision {
            teller: &self.teller,
            guest: &guest,
            folder,
            plan,
            image: image.digest.to_string(),
        });
        let command = job.command(&image.config, self.host.engine_port);
        let serving = async {
            let command = command?;
            self.serve(&guest, command, provision, watch).await
        };
        let ended = tokio::select! {
            ended = serving => ended,
            exit = machine.ended() => Err(self.teller.failure("vm", BootError::ended(exit).explain(), None)),
            () = self.stop.cancelled() => Ok(Ended::Stopped),
        };
        self.guest.send_replace(None);
        if ended.is_ok() {
            self.teller.say(Phase::Stopping, "the VM ends");
        }
        machine.stop(STOP_GRACE).await;
        self.teller.change(|report| report.pid = None);
        ended
    }

    async fn boot(&self, job: &Job) -> Result<(Machine, Rootfs), WorkerError> {
        let request = job.boot_request(&self.host, &self.teller.entry, &|step| self.teller.progress(step)).await?;
        let machine = self.host.machines.boot(request, &|step| self.teller.progress(step)).await;
        let (machine, image) = machine.map_err(|error| job.boot_error(&self.teller.entry.name, &error))?;
        info!(
            worker = self.teller.entry.name,
            pid = machine.pid(),
            driver = machine.driver,
            start = machine.start.name(),
            kernel = machine.kernel,
            boot_id = machine.boot_id,
            "VM of a worker is up"
        );
        self.teller.log.note(&format!("VM up: {}, kernel {}", machine.driver, machine.kernel));
        self.teller.change(|report| {
            report.pid = Some(machine.pid());
            report.driver = Some(machine.driver.clone());
            report.kernel = Some(machine.kernel.clone());
        });
        Ok((machine, image))
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
            let process = Process {
                teller: &self.teller,
                host: &self.host,
                guest,
                command: &command,
                provision: provision.as_ref(),
            };
            match process.run(watch).await? {
                Next::Install => {}
                Next::Reboot => return Ok(Ended::Reboot),
            }
        }
    }
}
