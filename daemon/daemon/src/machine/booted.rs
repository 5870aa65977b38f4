//! A VM whose guest waits for its identity.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_client::{Adopted, Guest, GuestError};
use nix::fcntl::{Flock, FlockArg};
use oci::Rootfs;
use uuid::Uuid;
use vmm::{GatewayPort, HostTarget, MemoryMib, TemplateUse, VcpuCount, Vm, VmEvent, VmSpec, VmStart};

use super::{BootError, BootProgress, Failed, Machines, Network, Scratch, Slot, Watch, scratch};
use crate::home::RunDir;

/// Free space without which no writable disk is made.
const MIN_FREE_MIB: u64 = 64;

/// What a VM process calls the acceleration that is none.
const EMULATED: &str = "tcg";

/// How long the end of a VM may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Everything about a VM that is settled before its guest becomes somebody.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) root_disk: PathBuf,
    pub(super) memory: MemoryMib,
    pub(super) vcpus: VcpuCount,
    pub(super) network: Network,
    pub(super) scratch: Scratch,
    pub(super) template: TemplateUse,
}

impl Plan {
    pub(super) fn new(request: &super::BootRequest, rootfs: &Rootfs, template: TemplateUse) -> Result<Self, BootError> {
        let limit = |what: String| BootError::Limit { what };
        Ok(Self {
            name: request.name.clone(),
            root_disk: rootfs.path.clone(),
            memory: MemoryMib::new(request.memory_mib).map_err(|error| limit(error.to_string()))?,
            vcpus: VcpuCount::new(request.vcpus).map_err(|error| limit(error.to_string()))?,
            network: request.network.clone(),
            scratch: request.scratch.clone(),
            template,
        })
    }
}

/// Dropping it kills the VM and removes what it had on the host.
pub(super) struct Booted {
    pub(super) guest: Guest,
    pub(super) vm: Vm,
    /// Such as `qemu on tcg`.
    pub(super) driver: String,
    pub(super) emulated: bool,
    pub(super) start: VmStart,
    pub(super) slot: Slot,
    pub(super) prepared: Instant,
    pub(super) running: Instant,
    pub(super) scratch_lock: Option<Flock<File>>,
    // Last, so that the directory goes after the VM.
    pub(super) run: RunDir,
}

impl Booted {
    /// Starts a VM. A restored one is told apart also when what follows fails.
    pub(super) async fn start(machines: &Machines, plan: &Plan, progress: Watch<'_>) -> Result<Self, Failed> {
        let id = Uuid::new_v4().simple().to_string();
        let run = RunDir::create(&machines.home.run(), &id)
            .map_err(|source| BootError::Io { what: "the run directory".into(), source })?;
        let (scratch_disk, scratch_lock) = writable_disk(machines, &plan.scratch, run.path())?;
        let slot = match plan.network {
            Network::Open { worker: Some(_) } => Slot::WORKERS,
            _ => Slot::next(),
        };
        let spec = VmSpec {
            name: plan.name.clone(),
            run_dir: run.path().to_owned(),
            kit_dir: machines.home.kit(),
            template_dir: machines.home.templates(),
            memory: plan.memory,
            vcpus: plan.vcpus,
            driver: machines.driver,
            accel: machines.accel,
            root_disk: plan.root_disk.clone(),
            scratch_disk,
            scratch_is_kept: plan.scratch.is_kept(),
            network: match &plan.network {
                Network::None => None,
                Network::Open { worker } => Some(slot.relay(engine_port(machines, worker.as_deref()))),
            },
            template: plan.template.clone(),
        };
        let prepared = Instant::now();
        let (mut vm, channel) =
            Vm::spawn(&spec, &machines.iii_vm).await.map_err(|source| BootError::Spawn { source: Box::new(source) })?;
        let (driver, accel, start) = running(&mut vm, progress).await?;
        let running = Instant::now();
        let guest = Guest::connect(channel)
            .map_err(|source| BootError::Io { what: "the guest's channel".into(), source })
            .map_err(|error| Failed { error, restored: !start.is_boot(), warm: false })?;
        let (emulated, driver) = (accel == EMULATED, format!("{driver} on {accel}"));
        Ok(Self { guest, vm, driver, emulated, start, slot, prepared, running, scratch_lock, run })
    }
}

impl Booted {
    /// Its guest was up before it was started: no hello comes.
    pub(super) fn is_restored(&self) -> bool {
        !self.start.is_boot()
    }

    /// What the guest answers; or why it does not, in the words of whoever knows best.
    pub(super) async fn until_ready(
        &mut self,
        work: impl Future<Output = Result<Adopted, GuestError>>,
        patience: Duration,
    ) -> Result<Adopted, BootError> {
        let lost = tokio::select! {
            adopted = work => match adopted {
                Err(GuestError::Closed) => GuestError::Closed,
                adopted => return adopted.map_err(|source| BootError::Guest { source }),
            },
            exit = self.vm.wait() => return Err(BootError::ended(exit)),
            () = tokio::time::sleep(patience) => return Err(BootError::silent(patience, self.run.path())),
        };
        // The channel ends a moment before the VM has told why.
        match tokio::time::timeout(LAST_WORDS, self.vm.wait()).await {
            Ok(exit) => Err(BootError::ended(exit)),
            Err(_) => Err(BootError::Guest { source: lost }),
        }
    }
}

/// Waits until the guest's processors run.
async fn running(vm: &mut Vm, progress: Watch<'_>) -> Result<(String, String, VmStart), BootError> {
    loop {
        match vm.next_event().await {
            VmEvent::BuildingTemplate => progress(BootProgress::BuildingTemplate),
            VmEvent::Warning { message } => progress(BootProgress::Warning(message)),
            VmEvent::Running { driver, accel, start, .. } => return Ok((driver, accel, start)),
            // Answers to commands; none was given yet.
            VmEvent::Paused | VmEvent::Resumed | VmEvent::Snapshotted(_) | VmEvent::CommandFailed(_) => {}
            VmEvent::Exited(exit) => return Err(BootError::ended(exit)),
        }
    }
}

/// The engine, for the guest of a worker: who calls is said by us, not by the guest.
fn engine_port(machines: &Machines, worker: Option<&str>) -> Option<GatewayPort> {
    let preface = serde_json::json!({ "worker": worker?, "isolation": "microvm" }).to_string() + "\n";
    let target = HostTarget::Unix { path: machines.vm_socket.clone(), preface };
    Some(GatewayPort { port: machines.engine_port, target })
}

fn writable_disk(machines: &Machines, kind: &Scratch, run: &Path) -> Result<(PathBuf, Option<Flock<File>>), BootError> {
    let blank = |file| match machines.home.kit().join(file) {
        blank if blank.exists() => Ok(blank),
        _ => Err(BootError::Kit { file, kit: machines.home.kit() }),
    };
    let failed = |source| BootError::Io { what: "the writable disk".into(), source };
    match kind {
        Scratch::Throwaway => {
            let path = run.join("scratch.ext4");
            require_space(run)?;
            // Without a journal: it is never mounted again, and a journal would only cost its guest time.
            scratch::copy(&blank("scratch-throwaway.ext4")?, &path).map_err(failed)?;
            Ok((path, None))
        }
        Scratch::Saved => {
            require_space(run)?;
            Ok((run.join("scratch.ext4"), None))
        }
        Scratch::Persistent(path) => {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder).map_err(failed)?;
            if !path.exists() {
                require_space(folder)?;
                scratch::copy(&blank("scratch.ext4")?, path).map_err(failed)?;
            }
            let file = File::open(path).map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Ok((path.clone(), Some(lock))),
                // Two machines on one ext4 file system destroy it.
                Err(_) => Err(BootError::DiskInUse { path: path.clone() }),
            }
        }
    }
}

/// The disk is sparse and grows; on a full one the guest's first writes would fail.
fn require_space(folder: &Path) -> Result<(), BootError> {
    let Ok(space) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
    #[cfg_attr(target_os = "linux", expect(clippy::useless_conversion, reason = "other systems count in 32 bits"))]
    let free_mib = (u64::from(space.blocks_available()) * space.fragment_size()) >> 20;
    if free_mib >= MIN_FREE_MIB {
        return Ok(());
    }
    Err(BootError::NoSpace { path: folder.to_owned(), free_mib, needed_mib: MIN_FREE_MIB })
}
