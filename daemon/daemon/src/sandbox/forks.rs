//! Sandboxes that are saved, and sandboxes that go on where a saved one was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daemon_api::sandbox::Create;
use daemon_api::snapshot::{Fork, Restore, Restored, Row, Snapshot, Taken};
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use futures_util::StreamExt as _;
use guest_protocol::Origin;
use tracing::info;
use uuid::Uuid;
use vmm::{CommandError, FailureKind, SnapshotPurpose, SnapshotTaken};

use super::registry::{Place, Sandbox, boot_error};
use super::snapshots::{About, Stored, unix_seconds};
use super::{Sandboxes, environment};
use crate::home::RunDir;
use crate::machine::{self, RestoreRequest, SaveError};

/// What `image` begins with when it is a snapshot.
const PREFIX: &str = "snapshot:";

/// What all sandboxes of one restore have in common.
struct Common {
    folder: PathBuf,
    image: String,
    network: bool,
    /// Snapshot or sandbox.
    parent: Uuid,
    name: Option<String>,
    idle_timeout_secs: Option<u64>,
    env: BTreeMap<String, String>,
}

impl Sandboxes {
    pub(crate) async fn snapshot(self: &Arc<Self>, request: Snapshot) -> Result<Taken, SandboxError> {
        let sandbox = self.find(&request.sandbox_id)?;
        if let Some(name) = &request.name {
            self.snapshots.check_name(name)?;
        }
        let (id, folder, _making) = self.snapshots.begin()?;
        let made = async {
            let taken = self.save(&sandbox, folder.join("vm"), SnapshotPurpose::Keeping).await?;
            let about = About {
                id,
                name: request.name,
                image: sandbox.image.clone(),
                network: sandbox.network,
                env: sandbox.env.clone(),
                source: sandbox.id,
                created_at: unix_seconds(),
                size_bytes: taken.memory_bytes,
            };
            self.snapshots.finish(&folder, &about)?;
            Ok(Taken {
                snapshot_id: id.to_string(),
                name: about.name,
                image: about.image,
                paused_ms: milliseconds(&taken),
                size_bytes: about.size_bytes,
            })
        };
        let made = made.await;
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&folder);
        }
        made
    }

    pub(crate) async fn restore(self: &Arc<Self>, request: Restore) -> Result<Restored, SandboxError> {
        let stored = self.snapshots.find(&request.snapshot)?;
        self.check_stored(&stored).await?;
        let common = common(&stored, request.name, request.idle_timeout_secs, request.env.as_ref())?;
        let sandbox_ids = self.children(common, request.count.unwrap_or(1), true).await?;
        Ok(Restored { sandbox_ids: words(&sandbox_ids), paused_ms: None })
    }

    pub(crate) async fn fork(self: &Arc<Self>, request: Fork) -> Result<Restored, SandboxError> {
        let sandbox = self.find(&request.sandbox_id)?;
        let count = request.count.unwrap_or(1);
        let env = environment(request.env.as_ref())?;
        let places = self.places(count)?;
        let home = self.machines.home();
        let run = RunDir::create(&home.run(), &format!("fork-{}", Uuid::new_v4().simple()))
            .map_err(|error| SandboxError::new(Kind::SnapshotFailed, format!("{}: {error}", home.run().display())))?;
        let common = Common {
            folder: run.path().join("vm"),
            image: sandbox.image.clone(),
            network: sandbox.network,
            parent: sandbox.id,
            name: request.name,
            idle_timeout_secs: request.idle_timeout_secs,
            // What the source's commands are given, and then its own.
            env: sandbox.env.clone().into_iter().chain(env).collect(),
        };
        let taken = self.save(&sandbox, common.folder.clone(), SnapshotPurpose::Children(count)).await?;
        let sandbox_ids = self.restore_all(Arc::new(common), places, false).await?;
        info!(source = %sandbox.id, count, paused_us = taken.paused_us, took_ms = taken.took_ms, "sandbox forked");
        // Running machines keep their files open.
        drop(run);
        Ok(Restored { sandbox_ids: words(&sandbox_ids), paused_ms: Some(milliseconds(&taken)) })
    }

    /// The image behind `image`, which may be a snapshot of one.
    pub(crate) fn image_of(&self, image: &str) -> Result<String, SandboxError> {
        match self.snapshot_named(image) {
            Some(stored) => Ok(stored?.about.image),
            None => Ok(image.to_owned()),
        }
    }

    /// What `create` and `run` call an image, if it is a snapshot.
    pub(crate) fn snapshot_named(&self, image: &str) -> Option<Result<Stored, SandboxError>> {
        let name = image.strip_prefix(PREFIX)?;
        Some(self.snapshots.find(name))
    }

    /// `sandbox::create` of a snapshot: what is asked for must be what it has.
    pub(crate) async fn create_from(self: &Arc<Self>, stored: Stored, request: &Create) -> Result<Uuid, SandboxError> {
        let info = self.check_stored(&stored).await?;
        let differs = |what: &str, asked: Option<u32>, has: u32| match asked {
            Some(asked) if asked != has => Some(format!("{what} is {asked}, but the snapshot has {has}")),
            _ => None,
        };
        let network = (request.network.is_some_and(|asked| asked != stored.about.network))
            .then(|| format!("network is {}, but the snapshot has {}", !stored.about.network, stored.about.network));
        let problem = differs("cpus", request.cpus, info.vcpus.get())
            .or_else(|| differs("memory_mb", request.memory_mb, info.memory.mib()))
            .or(network);
        if let Some(problem) = problem {
            return Err(SandboxError::invalid(problem));
        }
        let common = common(&stored, request.name.clone(), request.idle_timeout_secs, request.env.as_ref())?;
        let ids = self.children(common, 1, true).await?;
        ids.first().copied().ok_or_else(|| SandboxError::new(Kind::BootFailed, "nothing was restored"))
    }

    /// An image that is not allowed any more, or a machine that has become too large, is not brought back by a snapshot of it.
    async fn check_stored(&self, stored: &Stored) -> Result<vmm::SnapshotInfo, SandboxError> {
        self.image(&stored.about.image).await?;
        let info = vmm::SnapshotInfo::read(&stored.vm)
            .map_err(|error| SandboxError::new(Kind::SnapshotDamaged, error.to_string()))?;
        self.check_size(&stored.about.image, info.vcpus.get(), info.memory.mib())?;
        Ok(info)
    }

    async fn children(self: &Arc<Self>, common: Common, count: u32, verify: bool) -> Result<Vec<Uuid>, SandboxError> {
        let places = self.places(count)?;
        self.restore_all(Arc::new(common), places, verify).await
    }

    /// All places, or none.
    fn places(&self, count: u32) -> Result<Vec<Place>, SandboxError> {
        if count == 0 {
            return Err(SandboxError::invalid("count is 0"));
        }
        (0..count).map(|_| self.place()).collect()
    }

    /// All of them, or none.
    async fn restore_all(
        self: &Arc<Self>,
        common: Arc<Common>,
        places: Vec<Place>,
        verify: bool,
    ) -> Result<Vec<Uuid>, SandboxError> {
        // One reads the memory to its end; the others take its word.
        let jobs = places.into_iter().enumerate().map(|(number, place)| {
            let (sandboxes, common) = (Arc::clone(self), Arc::clone(&common));
            async move { sandboxes.restore_one(&common, place, verify && number == 0).await }
        });
        // No more of them in the queue than could start: others have their turn in between.
        let results: Vec<Result<Uuid, SandboxError>> =
            futures_util::stream::iter(jobs).buffered(machine::starts_at_once()).collect().await;
        let (ids, errors): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let ids: Vec<Uuid> = ids.into_iter().flatten().collect();
        match errors.into_iter().find_map(Result::err) {
            None => {
                // The first have waited for the last: that was not idleness.
                for id in &ids {
                    if let Ok(sandbox) = self.find(&id.to_string()) {
                        sandbox.touch();
                    }
                }
                Ok(ids)
            }
            Some(error) => {
                for id in ids {
                    let _ = self.stop(&id.to_string(), true).await;
                }
                Err(error)
            }
        }
    }

    async fn restore_one(&self, common: &Common, place: Place, verify: bool) -> Result<Uuid, SandboxError> {
        let id = Uuid::new_v4();
        let request = RestoreRequest {
            name: format!("sandbox-{id}"),
            folder: common.folder.clone(),
            verify,
            network: common.network,
            hostname: format!("sandbox-{}", &id.simple().to_string()[..8]),
            origin: Origin {
                id: id.to_string(),
                parent: common.parent.to_string(),
                forked_at_unix_ns: unix_seconds().saturating_mul(1_000_000_000),
            },
        };
        let machine = self.machines.restore(request).await.map_err(boot_error)?;
        info!(sandbox = %id, driver = machine.driver, start = machine.start.name(), "sandbox created");
        let idle = common.idle_timeout_secs;
        let mut sandbox = Sandbox::new(id, &common.image, machine, self.idle_timeout(idle), place);
        sandbox.name = common.name.clone();
        sandbox.network = common.network;
        sandbox.env = common.env.clone();
        self.living().insert(id, Arc::new(sandbox));
        Ok(id)
    }

    /// Not cut short when the caller leaves: half a snapshot helps nobody, and the guest waits for its end.
    async fn save(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        folder: PathBuf,
        purpose: SnapshotPurpose,
    ) -> Result<SnapshotTaken, SandboxError> {
        let sandbox = Arc::clone(sandbox);
        let saving = tokio::spawn(async move {
            if sandbox.paused.load(Ordering::Relaxed) {
                return Err(paused(sandbox.id));
            }
            let mut machine = sandbox.machine.lock().await;
            let Some(machine) = machine.as_mut() else { return Err(sandbox.gone()) };
            let saved = tokio::select! {
                saved = machine.save(&folder, purpose) => saved.map_err(save_error),
                // Whoever stops it need not wait: what is half saved ends with the VM.
                () = sandbox.stopped.cancelled() => Err(sandbox.gone()),
            };
            if matches!(&saved, Err(error) if error.kind == Kind::AlreadyStopped) {
                machine.kill().await;
            }
            sandbox.touch();
            saved
        });
        saving.await.map_err(|error| SandboxError::new(Kind::SnapshotFailed, error.to_string()))?
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<Uuid, SandboxError> {
        let sandbox = self.find(id)?;
        let mut machine = sandbox.machine.lock().await;
        let Some(machine) = machine.as_mut() else { return Err(sandbox.gone()) };
        machine.pause().await.map_err(save_error)?;
        sandbox.paused.store(true, Ordering::Relaxed);
        Ok(sandbox.id)
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<Uuid, SandboxError> {
        let sandbox = self.find(id)?;
        let mut machine = sandbox.machine.lock().await;
        let Some(machine) = machine.as_mut() else { return Err(sandbox.gone()) };
        machine.resume().await.map_err(save_error)?;
        sandbox.touch();
        sandbox.paused.store(false, Ordering::Relaxed);
        Ok(sandbox.id)
    }

    pub(crate) fn list_snapshots(&self) -> Vec<Row> {
        self.snapshots.list()
    }

    pub(crate) fn delete_snapshot(&self, wanted: &str) -> Result<Uuid, SandboxError> {
        self.snapshots.delete(wanted)
    }
}

fn common(
    stored: &Stored,
    name: Option<String>,
    idle_timeout_secs: Option<u64>,
    env: Option<&daemon_api::sandbox::Env>,
) -> Result<Common, SandboxError> {
    Ok(Common {
        folder: stored.vm.clone(),
        image: stored.about.image.clone(),
        network: stored.about.network,
        parent: stored.about.id,
        name,
        idle_timeout_secs,
        env: stored.about.env.clone().into_iter().chain(environment(env)?).collect(),
    })
}

pub(super) fn paused(id: Uuid) -> SandboxError {
    SandboxError::new(Kind::Paused, format!("sandbox {id} is paused"))
}

fn words(ids: &[Uuid]) -> Vec<String> {
    ids.iter().map(Uuid::to_string).collect()
}

fn milliseconds(taken: &SnapshotTaken) -> f64 {
    // Whole microseconds, far below what a double cannot hold.
    taken.paused_us as f64 / 1000.0
}

fn save_error(error: SaveError) -> SandboxError {
    match error {
        SaveError::Vm(error) => command_error(error),
        SaveError::NoAnswer => SandboxError::new(Kind::AlreadyStopped, error.to_string()),
        SaveError::Guest { source } => {
            SandboxError::new(Kind::SnapshotFailed, format!("the guest did not fall silent: {source}"))
        }
    }
}

fn command_error(error: CommandError) -> SandboxError {
    let kind = match &error {
        CommandError::Failed(failed) if failed.kind == FailureKind::Unsupported => Kind::SnapshotUnsupported,
        CommandError::Ended(_) => Kind::AlreadyStopped,
        CommandError::Failed(_) | CommandError::Confused => Kind::SnapshotFailed,
    };
    let hint = error.hint().map_or_else(String::new, |hint| format!(" (hint: {hint})"));
    SandboxError::new(kind, format!("{error}{hint}"))
}
