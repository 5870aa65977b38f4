//! The living sandboxes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use daemon_api::sandbox::Create;
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use engine_client::Client;
use guest_client::Guest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;
use vmm::Unrestorable;

use crate::catalog::PRESETS;
use crate::config::SandboxConfig;
use crate::machine::{BootError, BootProgress, BootRequest, Machine, Machines, Network, Scratch};
use crate::sandbox::command::environment;
use crate::sandbox::forks::paused;
use crate::sandbox::snapshots::Snapshots;
use crate::turns::{self, Turn, Turns};

/// How long the end of a VM may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Longest turn of a sandbox's first program, which an emulator translates as it goes (ARCHITECTURE.md, "A sandbox's life").
/// Machines that do so at once take each other's caches: fifty children have answered their first command in 7/8 of the
/// time (`make bench AREAS=fork`, with and without turns). `true` takes less than 80 ms in a clone, a processor to itself;
/// Python is translated by then, if not through.
const LONGEST_TURN: Duration = Duration::from_millis(150);

/// Nobody waits longer than this to run a first program.
const PATIENCE: Duration = Duration::from_secs(5);

/// All sandboxes of this daemon.
pub(crate) struct Sandboxes {
    pub(crate) config: SandboxConfig,
    pub(super) machines: Arc<Machines>,
    pub(super) snapshots: Snapshots,
    /// For channels.
    pub(crate) client: Client,
    living: Mutex<HashMap<Uuid, Arc<Sandbox>>>,
    /// Living and booting ones; counts before the boot, so that no two creations take the last place.
    taken: Arc<AtomicU32>,
    turns: Turns,
}

pub(super) struct Sandbox {
    pub(super) id: Uuid,
    pub(super) name: Option<String>,
    pub(super) image: String,
    pub(super) network: bool,
    /// For its commands; of a sandbox that was booted, the guest has them.
    pub(super) env: BTreeMap<String, String>,
    guest: Guest,
    idle: Duration,
    created: Instant,
    used: Mutex<Instant>,
    /// Its processors stand still: nobody enters, and it is not idle.
    pub(super) paused: AtomicBool,
    /// Its processors are emulated, and it has run no command yet.
    turn_due: AtomicBool,
    /// Commands that run.
    busy: AtomicU32,
    /// Commands and file transfers.
    seats: AtomicU32,
    /// Cancelled when the sandbox is stopped: whoever works in it fails at once.
    pub(super) stopped: CancellationToken,
    pub(super) machine: tokio::sync::Mutex<Option<Machine>>,
    /// Why its VM ended by itself.
    cause: OnceLock<String>,
    _place: Place,
}

/// One of `max_concurrent_sandboxes`.
pub(super) struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody works in a sandbox: it is not idle, and it is told when it ends.
pub(crate) struct Seat {
    sandbox: Arc<Sandbox>,
    exec: bool,
    turns: Turns,
}

/// What somebody does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Exec,
    Files,
}

impl Sandboxes {
    pub(crate) fn new(config: SandboxConfig, machines: Arc<Machines>, client: Client) -> Self {
        let snapshots = Snapshots::open(machines.home().snapshots());
        let (living, taken) = (Mutex::new(HashMap::new()), Arc::new(AtomicU32::new(0)));
        let turns = Turns::new(turns::processors(), LONGEST_TURN, PATIENCE);
        Self { config, machines, snapshots, client, living, taken, turns }
    }

    pub(super) fn living(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Sandbox>>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self) -> Result<Place, SandboxError> {
        let max = self.config.max_concurrent_sandboxes;
        let taken =
            self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < max).then_some(taken + 1));
        taken
            .map(|_| Place(Arc::clone(&self.taken)))
            .map_err(|_| SandboxError::new(Kind::ResourceLimit, format!("all {max} sandboxes are taken")))
    }

    /// Boots a sandbox and returns its id.
    pub(crate) async fn create(self: &Arc<Self>, request: &Create) -> Result<Uuid, SandboxError> {
        if let Some(stored) = self.snapshot_named(&request.image) {
            return self.create_from(stored?, request).await;
        }
        let place = self.place()?;
        let image = self.image(&request.image).await?;
        let vcpus = request.cpus.unwrap_or(self.config.default_cpus);
        let memory_mib = request.memory_mb.unwrap_or(self.config.default_memory_mb);
        self.check_size(&request.image, vcpus, memory_mib)?;
        let env = environment(request.env.as_ref())?;
        let id = Uuid::new_v4();
        let boot = BootRequest {
            name: format!("sandbox-{id}"),
            image,
            memory_mib,
            vcpus,
            network: if request.network.unwrap_or(false) { Network::Open { worker: None } } else { Network::None },
            env,
            scratch: Scratch::Throwaway,
            hostname: format!("sandbox-{}", &id.simple().to_string()[..8]),
        };
        let progress = |step: BootProgress| match step {
            BootProgress::Warning(message) => warn!(sandbox = %id, "{message}"),
            BootProgress::BuildingTemplate => info!(sandbox = %id, "building the VM's template (once per machine)"),
            BootProgress::Image(_) | BootProgress::Booting => {}
        };
        let (machine, _) = self.machines.boot(boot, &progress).await.map_err(boot_error)?;
        info!(sandbox = %id, driver = machine.driver, start = machine.start.name(), "sandbox created");
        let mut sandbox =
            Sandbox::new(id, &request.image, machine, self.idle_timeout(request.idle_timeout_secs), place);
        sandbox.name = request.name.clone();
        sandbox.network = request.network.unwrap_or(false);
        self.living().insert(id, Arc::new(sandbox));
        Ok(id)
    }

    pub(super) fn idle_timeout(&self, asked_secs: Option<u64>) -> Duration {
        Duration::from_secs(asked_secs.unwrap_or(self.config.default_idle_timeout_secs))
    }

    pub(super) async fn image(&self, name: &str) -> Result<oci::ImageRef, SandboxError> {
        let known = PRESETS.iter().any(|(preset, _)| *preset == name) || self.config.custom_images.contains_key(name);
        if !known || !self.config.image_allowlist.iter().any(|allowed| allowed == name) {
            let usable: Vec<&str> =
                self.names().filter(|name| self.config.image_allowlist.iter().any(|allowed| allowed == name)).collect();
            let message =
                format!("image `{name}` is not in the catalogue or not allowed; usable: [{}]", usable.join(", "));
            return Err(SandboxError::new(Kind::ImageNotInCatalog, message));
        }
        let reference = self.config.custom_images.get(name).map_or(name, String::as_str);
        let image = self.machines.resolve(reference).map_err(|error| {
            SandboxError::new(Kind::ImageNotInCatalog, format!("image `{name}` is `{reference}`: {error}"))
        })?;
        if !self.config.auto_install && !self.machines.has_image(&image).await {
            let message = format!("image `{name}` is not installed, and auto_install is off");
            return Err(SandboxError::new(Kind::RootfsMissing, message));
        }
        Ok(image)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        PRESETS.iter().map(|(name, _)| *name).chain(self.config.custom_images.keys().map(String::as_str))
    }

    pub(super) fn check_size(&self, image: &str, vcpus: u32, memory_mib: u32) -> Result<(), SandboxError> {
        let caps = self.config.per_image_caps.get(image).cloned().unwrap_or_default();
        let over = |what: &str, asked: u32, max: Option<u32>| match max {
            _ if asked == 0 => Some(format!("{what} is 0")),
            Some(max) if asked > max => Some(format!("{what} is {asked}, at most {max} for image `{image}`")),
            _ => None,
        };
        let problem = over("cpus", vcpus, caps.max_cpus).or_else(|| over("memory_mb", memory_mib, caps.max_memory_mb));
        problem.map_or(Ok(()), |problem| Err(SandboxError::new(Kind::ResourceLimit, problem)))
    }

    /// Finds a sandbox to work in.
    pub(crate) fn enter(&self, id: &str, activity: Activity) -> Result<Seat, SandboxError> {
        let sandbox = self.find(id)?;
        if sandbox.paused.load(Ordering::Relaxed) {
            return Err(paused(sandbox.id));
        }
        let exec = activity == Activity::Exec;
        if exec {
            let max = self.config.max_concurrent_exec_per_sandbox.max(1);
            let entered = sandbox
                .busy
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| (busy < max).then_some(busy + 1));
            if entered.is_err() {
                let message = format!("{max} commands run in sandbox {id} already");
                return Err(SandboxError::new(Kind::ConcurrentExec, message));
            }
        }
        sandbox.seats.fetch_add(1, Ordering::Relaxed);
        sandbox.touch();
        Ok(Seat { sandbox, exec, turns: self.turns.clone() })
    }

    pub(super) fn find(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        let id = parse_id(id)?;
        let found = self.living().get(&id).cloned();
        let sandbox = found.ok_or_else(|| SandboxError::new(Kind::NotFound, format!("no sandbox {id}")))?;
        if sandbox.stopped.is_cancelled() {
            return Err(SandboxError::new(Kind::AlreadyStopped, format!("sandbox {id} is stopped")));
        }
        Ok(sandbox)
    }

    /// Stops a sandbox. With `wait`, nothing of it is left afterwards; else it is on its way out.
    pub(crate) async fn stop(self: &Arc<Self>, id: &str, wait: bool) -> Result<Uuid, SandboxError> {
        let sandbox = self.find(id)?;
        let id = sandbox.id;
        sandbox.stopped.cancel();
        let sandboxes = Arc::clone(self);
        let ending = tokio::spawn(async move { sandboxes.end(sandbox).await });
        if wait {
            let _ = ending.await;
        }
        Ok(id)
    }

    async fn end(&self, sandbox: Arc<Sandbox>) {
        sandbox.stopped.cancel();
        if let Some(mut machine) = sandbox.machine.lock().await.take() {
            // Its disk is thrown away: there is nothing to end in order.
            machine.kill().await;
        }
        self.living().remove(&sandbox.id);
        info!(sandbox = %sandbox.id, "sandbox stopped");
    }

    pub(crate) async fn stop_all(&self) {
        let all: Vec<_> = self.living().values().cloned().collect();
        futures_util::future::join_all(all.into_iter().map(|sandbox| self.end(sandbox))).await;
    }

    /// Stops sandboxes that nobody uses, and forgets those whose VM has died.
    pub(crate) async fn reap(&self) {
        let all: Vec<_> = self.living().values().cloned().collect();
        for sandbox in all {
            // One that is being saved is in use, and the others need not wait for it.
            if sandbox.machine.try_lock().is_err() {
                continue;
            }
            if sandbox.learn_its_end(Duration::from_millis(1)).await || sandbox.is_idle() {
                self.end(sandbox).await;
            }
        }
    }

    pub(crate) fn list(&self) -> Value {
        let living = self.living();
        let max = self.config.max_concurrent_exec_per_sandbox.max(1);
        let mut rows: Vec<_> = living.values().collect();
        rows.sort_by_key(|sandbox| sandbox.created);
        let rows: Vec<Value> = rows
            .into_iter()
            .map(|sandbox| {
                let busy = sandbox.busy.load(Ordering::Relaxed);
                json!({
                    "sandbox_id": sandbox.id, "name": sandbox.name, "image": sandbox.image,
                    "age_secs": sandbox.created.elapsed().as_secs(), "exec_in_progress": busy > 0,
                    "exec_in_flight": busy, "exec_slots_free": max.saturating_sub(busy),
                    "stopped": sandbox.stopped.is_cancelled(),
                    "paused": sandbox.paused.load(Ordering::Relaxed),
                })
            })
            .collect();
        json!({ "sandboxes": rows })
    }

    pub(crate) async fn catalog(&self) -> Value {
        let mut images = Vec::new();
        for name in self.names() {
            let custom = self.config.custom_images.get(name);
            let preset = PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, reference)| *reference);
            let reference = custom.map(String::as_str).or(preset).unwrap_or(name);
            let resolved = self.machines.resolve(custom.map_or(name, String::as_str));
            let installed = match &resolved {
                Ok(image) => self.machines.has_image(image).await,
                Err(_) => false,
            };
            images.push(json!({
                "name": name, "oci_ref": reference, "kind": if custom.is_some() { "custom" } else { "preset" },
                "allowed": self.config.image_allowlist.iter().any(|allowed| allowed == name), "installed": installed,
            }));
        }
        json!({ "images": images })
    }
}

fn parse_id(id: &str) -> Result<Uuid, SandboxError> {
    id.parse().map_err(|_| SandboxError::invalid(format!("sandbox_id `{id}` is not a UUID")))
}

pub(super) fn boot_error(error: BootError) -> SandboxError {
    let kind = match &error {
        BootError::Image { .. } => Kind::AutoInstallFailed,
        BootError::Limit { .. } => Kind::ResourceLimit,
        BootError::Snapshot { .. } | BootError::Unrestorable { kind: Unrestorable::Damaged, .. } => {
            Kind::SnapshotDamaged
        }
        BootError::Unrestorable { kind: Unrestorable::Unfit, .. } => Kind::SnapshotUnfit,
        BootError::Kit { .. }
        | BootError::DiskInUse { .. }
        | BootError::NoSpace { .. }
        | BootError::Io { .. }
        | BootError::Spawn { .. }
        | BootError::Vm { .. }
        | BootError::Guest { .. } => Kind::BootFailed,
    };
    SandboxError::new(kind, error.explain())
}

impl Sandbox {
    /// One that has just come up.
    pub(super) fn new(id: Uuid, image: &str, machine: Machine, idle: Duration, place: Place) -> Self {
        Self {
            id,
            name: None,
            image: image.to_owned(),
            network: false,
            env: BTreeMap::new(),
            guest: machine.guest.clone(),
            idle,
            created: Instant::now(),
            used: Mutex::new(Instant::now()),
            paused: AtomicBool::new(false),
            turn_due: AtomicBool::new(machine.emulated),
            busy: AtomicU32::new(0),
            seats: AtomicU32::new(0),
            stopped: CancellationToken::new(),
            machine: tokio::sync::Mutex::new(Some(machine)),
            cause: OnceLock::new(),
            _place: place,
        }
    }

    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether its VM has ended, or does within `patience`; then `cause` says why.
    async fn learn_its_end(&self, patience: Duration) -> bool {
        let mut machine = self.machine.lock().await;
        let Some(machine) = machine.as_mut() else { return false };
        let Ok(exit) = tokio::time::timeout(patience, machine.ended()).await else { return false };
        self.cause.get_or_init(|| {
            let cause = BootError::ended(exit).explain();
            warn!(sandbox = %self.id, cause, "VM of a sandbox ended");
            cause
        });
        true
    }

    /// What callers hear once it has ended, by itself or because it was asked to.
    pub(super) fn gone(&self) -> SandboxError {
        let message = match self.cause.get() {
            Some(cause) => format!("sandbox {} is gone: {cause}", self.id),
            None => format!("sandbox {} is stopped", self.id),
        };
        SandboxError::new(Kind::AlreadyStopped, message)
    }

    async fn lost(&self) -> SandboxError {
        self.learn_its_end(LAST_WORDS).await;
        self.gone()
    }

    fn is_idle(&self) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        // A command or a transfer in flight is use, however long it takes.
        let works = self.seats.load(Ordering::Relaxed) != 0 || self.paused.load(Ordering::Relaxed);
        !works && used.elapsed() > self.idle
    }
}

impl Seat {
    /// Waits for a turn, if this is the first command of an emulated sandbox. It may be paused meanwhile.
    pub(crate) async fn turn(&self) -> Result<Option<Turn>, SandboxError> {
        if !self.sandbox.turn_due.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        let turn = self.turns.take().await;
        if self.sandbox.paused.load(Ordering::Relaxed) { Err(paused(self.sandbox.id)) } else { Ok(turn) }
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.sandbox.guest
    }

    /// What its commands are given besides their own.
    pub(crate) fn env(&self) -> &BTreeMap<String, String> {
        &self.sandbox.env
    }

    /// Does something in the sandbox; fails as soon as the sandbox is stopped or its VM is gone.
    pub(crate) async fn during<T>(
        &self,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        let work = async {
            match work.await {
                Err(error) if error.kind == Kind::AlreadyStopped => Err(self.sandbox.lost().await),
                result => result,
            }
        };
        tokio::select! {
            biased;
            () = self.sandbox.stopped.cancelled() => Err(self.sandbox.gone()),
            result = work => match result {
                Err(_) if self.sandbox.stopped.is_cancelled() => Err(self.sandbox.gone()),
                result => result,
            },
            () = self.sandbox.guest.closed() => Err(self.sandbox.lost().await),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sandbox.touch();
        self.sandbox.seats.fetch_sub(1, Ordering::Relaxed);
        if self.exec {
            self.sandbox.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
