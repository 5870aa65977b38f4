//! A worker's process, life after life, in a guest that stays.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon_api::WorkerError;
use daemon_api::worker::Phase;
use guest_client::{Guest, GuestError, Supervised, SupervisedEvent};
use guest_protocol::SuperviseRequest;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::info;

use crate::worker::host::Host;
use crate::worker::logs::Output;
use crate::worker::provision::Provision;
use crate::worker::report::Teller;
use crate::worker::watch::{Change, Watch, changed};
use crate::worker::{manifest, project, source};

/// Pause before a process that ended by itself is started again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A process that ran this long ended for a new reason.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How often the engine is asked whether it knows the worker.
const LOOK: Duration = Duration::from_millis(50);

/// Between two looks at a worker that is ready.
const RARE_LOOK: Duration = Duration::from_secs(2);

/// A connection without functions counts after this long: not every worker has functions.
const SILENT: Duration = Duration::from_millis(500);

/// A process and all it needs.
pub(crate) struct Process<'a> {
    pub(crate) teller: &'a Teller,
    pub(crate) host: &'a Host,
    pub(crate) guest: &'a Guest,
    pub(crate) command: &'a SuperviseRequest,
    /// `None`: nothing is copied and nothing installed.
    pub(crate) provision: Option<&'a Provision<'a>>,
}

/// Why the process is not kept any longer.
pub(crate) enum Next {
    Install,
    Reboot,
}

/// What the loop knows of the life that runs.
#[derive(Default)]
struct Life {
    started: Option<Started>,
    /// When it was asked for: a connection that is older is an earlier life's.
    asked_ms: u64,
    /// When to start it again.
    again: Option<Instant>,
    /// We asked for its end.
    restarting: bool,
}

struct Started {
    at: Instant,
    at_ms: u64,
    seen: Option<Instant>,
    looked: Instant,
    ready: bool,
}

impl Process<'_> {
    /// Runs it until its source asks for more than a restart.
    pub(crate) async fn run(&self, watch: &mut Option<Watch>) -> Result<Next, WorkerError> {
        let failed = |error: GuestError| self.teller.guest_failure("start", &error);
        self.teller.log.new_chapter();
        self.teller.say(Phase::Starting, "starting its process");
        let mut life = Life { asked_ms: unix_ms(), ..Life::default() };
        let mut program = self.guest.supervise(self.command.clone()).await.map_err(failed)?;
        let mut pause = FIRST_PAUSE;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = program.next() => match event.map_err(failed)? {
                    SupervisedEvent::Stdout(bytes) => self.teller.log.write(Output::Stdout, &bytes),
                    SupervisedEvent::Stderr(bytes) => self.teller.log.write(Output::Stderr, &bytes),
                    SupervisedEvent::Started { .. } => {
                        let now = Instant::now();
                        life.started = Some(Started { at: now, at_ms: life.asked_ms, seen: None, looked: now, ready: false });
                        self.teller.say(Phase::Starting, "its process runs, and has not connected to the engine yet");
                    }
                    SupervisedEvent::Exited { code } => {
                        let long = life.started.take().is_some_and(|started| started.at.elapsed() > LONG_LIFE);
                        if !std::mem::take(&mut life.restarting) {
                            pause = if long { FIRST_PAUSE } else { pause };
                            self.ended(code, pause);
                            life.again = Some(Instant::now() + pause);
                            pause = (pause * 2).min(MAX_PAUSE);
                        }
                    }
                    // Only after `stop`, and that is waited for elsewhere.
                    SupervisedEvent::Ended => return Err(failed(GuestError::Closed)),
                },
                () = sleep_until(life.again.unwrap_or_else(Instant::now)), if life.again.is_some() => {
                    life.again = None;
                    self.teller.log.new_chapter();
                    self.teller.change(|report| report.restarts += 1);
                    life.asked_ms = unix_ms();
                    program.restart().await.map_err(failed)?;
                }
                _ = look.tick(), if life.started.is_some() => {
                    if let Some(started) = &mut life.started {
                        self.look(started).await;
                    }
                }
                change = changed(watch) => match self.heed(&change).await? {
                    Heeded::Nothing => {}
                    Heeded::Restart => {
                        life.restarting = life.started.is_some();
                        life.again = None;
                        pause = FIRST_PAUSE;
                        self.teller.log.new_chapter();
                        life.asked_ms = unix_ms();
                        program.restart().await.map_err(failed)?;
                    }
                    Heeded::Next(next) => {
                        self.stop(program).await?;
                        return Ok(next);
                    }
                },
            }
        }
    }

    fn ended(&self, code: i32, pause: Duration) {
        let command =
            if self.command.argv.is_empty() { self.command.command.clone() } else { self.command.argv.join(" ") };
        let command = command.trim_start_matches("exec ");
        let reason = format!("`{command}` ended with exit status {code}");
        self.teller.fail(self.teller.failure("start", reason, Some(code)));
        self.teller.log.note(&format!("starting it again in {} ms", pause.as_millis()));
    }

    /// Asks the engine whether it knows the worker, over a connection of this life.
    async fn look(&self, started: &mut Started) {
        if started.ready && started.looked.elapsed() < RARE_LOOK {
            return;
        }
        let functions = self.host.connection(&self.teller.entry.name, started.at_ms).await;
        started.looked = Instant::now();
        let known = match functions {
            None => {
                started.seen = None;
                false
            }
            Some(functions) => functions > 0 || started.seen.get_or_insert_with(Instant::now).elapsed() > SILENT,
        };
        if known == started.ready {
            return;
        }
        started.ready = known;
        if known {
            let elapsed_ms = u64::try_from(started.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            let functions = functions.unwrap_or(0);
            info!(worker = self.teller.entry.name, functions, elapsed_ms, "worker ready");
            self.teller.say(
                Phase::Ready,
                &format!("{functions} function{} registered", if functions == 1 { "" } else { "s" }),
            );
            self.teller.change(|report| report.failure = None);
        } else {
            self.teller.say(Phase::Starting, "its process runs, and its connection to the engine is gone");
        }
    }

    /// Brings the change into the guest, and says what it takes.
    async fn heed(&self, change: &Change) -> Result<Heeded, WorkerError> {
        let Some(provision) = self.provision else { return Ok(Heeded::Nothing) };
        let names = |wanted: &dyn Fn(&std::path::Path) -> bool| match change {
            Change::Everything => true,
            Change::Paths(paths) => paths.iter().any(|path| wanted(path)),
        };
        if names(&|path| path == std::path::Path::new(manifest::FILE)) {
            let (plan, verdict) = project::read(provision.folder);
            match plan {
                None => {
                    let problem = format!("the manifest is not valid any more: {}", verdict.errors.join("; "));
                    self.teller.log.note(&problem);
                    return Ok(Heeded::Nothing);
                }
                Some(plan) if plan != *provision.plan => return Ok(Heeded::Next(Next::Reboot)),
                Some(_) => {}
            }
        }
        provision.copy(change).await?;
        info!(worker = self.teller.entry.name, "source changed");
        Ok(if names(&source::is_dependency_file) { Heeded::Next(Next::Install) } else { Heeded::Restart })
    }

    async fn stop(&self, mut program: Supervised) -> Result<(), WorkerError> {
        let failed = |error: GuestError| self.teller.guest_failure("start", &error);
        program.stop().await.map_err(failed)?;
        loop {
            match program.next().await.map_err(failed)? {
                SupervisedEvent::Stdout(bytes) => self.teller.log.write(Output::Stdout, &bytes),
                SupervisedEvent::Stderr(bytes) => self.teller.log.write(Output::Stderr, &bytes),
                SupervisedEvent::Started { .. } | SupervisedEvent::Exited { .. } => {}
                SupervisedEvent::Ended => return Ok(()),
            }
        }
    }
}

enum Heeded {
    Nothing,
    Restart,
    Next(Next),
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
