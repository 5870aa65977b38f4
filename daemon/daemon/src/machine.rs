//! The only place where image, VM and guest meet.
//!
//! ```text
//! image ─ Store::ensure ─► EROFS ┐
//! kit ─ scratch::copy ──► ext4 ──┼─► VmSpec ─ Vm::spawn ─► channel ─ Guest::connect ─ adopt ─► Machine
//! identity, entropy, network ────┘
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use guest_client::Guest;
use guest_protocol::{Disk, Identity, Network as GuestNetwork};
use nix::fcntl::{Flock, FlockArg};
use oci::{Digest, ImageConfig, ImageRef, Refresh, Rootfs, Store};
use tracing::debug;
use uuid::Uuid;
use vmm::{
    AccelChoice, DriverChoice, Egress, GatewayPort, HostTarget, MemoryMib, NetworkSpec, ROOT_DISK_BYTES, TemplateUse,
    VcpuCount, Vm, VmEvent, VmExit, VmSpec,
};

use crate::boot_error::BootError;
use crate::catalog;
use crate::home::{self, Home, RunDir};
use crate::scratch;

/// The gateway's address in every guest; each VM has a network of its own, so all may use the same.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
const GUEST_MAC: &str = "02:6d:73:00:00:02";
const GATEWAY_MAC: &str = "02:6d:73:00:00:01";
const PREFIX_LEN: u8 = 30;
const MTU: u16 = 1500;

const OPEN_FILES: u64 = 65_536;

/// Free space without which no writable disk is made.
const MIN_FREE_MIB: u64 = 64;

/// Until the guest has adopted its identity; a cold boot in emulation on a busy machine takes most of it.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// Until a guest that was restored from a template has done so; after it a cold boot is tried.
const CLONE_PATIENCE: Duration = Duration::from_secs(45);

/// Starts machines.
pub(crate) struct Machines {
    home: Home,
    store: Store,
    iii_vm: PathBuf,
    engine_port: u16,
    vm_socket: PathBuf,
    ca_bundle: Option<String>,
    driver: DriverChoice,
    accel: AccelChoice,
}

/// What a machine is to be.
#[derive(Debug, Clone)]
pub(crate) struct BootRequest {
    pub(crate) name: String,
    pub(crate) image: ImageRef,
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u32,
    pub(crate) network: Network,
    /// On top of the image's own.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) scratch: Scratch,
    pub(crate) hostname: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Network {
    None,
    /// Out to public and private addresses; to the engine, as this worker, if one is named.
    Open {
        worker: Option<String>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Scratch {
    /// Gone with the machine.
    Throwaway,
    /// Made when it is not there; locked for the machine's life.
    Persistent(PathBuf),
}

/// What takes its time.
#[derive(Debug, Clone)]
pub(crate) enum BootProgress {
    Image(oci::Progress),
    BuildingTemplate,
    Booting,
    Warning(String),
}

pub(crate) type Watch<'a> = &'a (dyn Fn(BootProgress) + Send + Sync);

/// An attempt to boot that failed.
struct Failed {
    error: BootError,
    /// Whether the guest was a clone of a template.
    restored: bool,
}

impl From<BootError> for Failed {
    fn from(error: BootError) -> Self {
        Self { error, restored: false }
    }
}

/// A guest that can be asked. Dropping it kills the VM and removes what it had on the host.
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    pub(crate) image_config: ImageConfig,
    pub(crate) image_digest: Digest,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    /// Such as `qemu on tcg`.
    pub(crate) driver: String,
    pub(crate) restored: bool,
    vm: Vm,
    _scratch_lock: Option<Flock<File>>,
    // Last, so that the directory goes after the VM.
    _run: RunDir,
}

impl Machines {
    pub(crate) fn new(
        home: Home,
        engine_port: u16,
        vm_socket: PathBuf,
        (driver, accel): (DriverChoice, AccelChoice),
    ) -> Result<Arc<Self>, oci::StoreError> {
        home::sweep(&home.run());
        let options = oci::StoreOptions { image_bytes: ROOT_DISK_BYTES, registry: oci::RegistryOptions::from_env() };
        let store = Store::open(&home.images(), options)?;
        let bundle =
            env::var_os("SSL_CERT_FILE").map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from);
        let ca_bundle = fs::read_to_string(bundle).ok().filter(|bundle| !bundle.is_empty());
        let iii_vm = bin_dir().join("iii-vm");
        Ok(Arc::new(Self { home, store, iii_vm, engine_port, vm_socket, ca_bundle, driver, accel }))
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// A preset's name, or any reference, as an image.
    pub(crate) fn resolve(&self, name: &str) -> Result<ImageRef, oci::RefError> {
        catalog::resolve(&self.home, name)
    }

    /// Gets an image without booting it.
    pub(crate) async fn image(&self, image: &ImageRef, progress: Watch<'_>) -> Result<Rootfs, BootError> {
        let report = |step: oci::Progress| progress(BootProgress::Image(step));
        let failed = |source| BootError::Image { image: image.to_string(), source: Box::new(source) };
        self.store.ensure(image, Refresh::IfMissing, &report).await.map_err(failed)
    }

    /// Whether the image is there already.
    pub(crate) async fn has_image(&self, image: &ImageRef) -> bool {
        matches!(self.store.find(image).await, Ok(Some(_)))
    }

    pub(crate) async fn boot(&self, request: BootRequest, progress: Watch<'_>) -> Result<Machine, BootError> {
        let rootfs = self.image(&request.image, progress).await?;
        let memory =
            MemoryMib::new(request.memory_mib).map_err(|error| BootError::Limit { what: error.to_string() })?;
        let vcpus = VcpuCount::new(request.vcpus).map_err(|error| BootError::Limit { what: error.to_string() })?;
        progress(BootProgress::Booting);
        let size = (memory, vcpus);
        let template = if env::var_os("III_NO_TEMPLATE").is_none() { TemplateUse::Clone } else { TemplateUse::Never };
        match self.attempt(&request, &rootfs, size, template, progress).await {
            Err(Failed { error, restored: true }) => {
                let message = format!("a clone of the template did not come up, booting instead: {}", error.explain());
                progress(BootProgress::Warning(message));
                self.attempt(&request, &rootfs, size, TemplateUse::Discard, progress).await
            }
            other => other,
        }
        .map_err(|failed| failed.error)
    }

    /// One VM, from its run directory to an adopted identity; nothing of it is left when it fails.
    async fn attempt(
        &self,
        request: &BootRequest,
        rootfs: &Rootfs,
        (memory, vcpus): (MemoryMib, VcpuCount),
        template: TemplateUse,
        progress: Watch<'_>,
    ) -> Result<Machine, Failed> {
        let begun = Instant::now();
        let id = Uuid::new_v4().simple().to_string();
        let run = RunDir::create(&self.home.run(), &id)
            .map_err(|source| BootError::Io { what: "the run directory".into(), source })?;
        let (scratch_disk, scratch_lock) = self.scratch(&request.scratch, run.path())?;
        let spec = VmSpec {
            name: request.name.clone(),
            run_dir: run.path().to_owned(),
            kit_dir: self.home.kit(),
            template_dir: self.home.templates(),
            memory,
            vcpus,
            driver: self.driver,
            accel: self.accel,
            root_disk: rootfs.path.clone(),
            scratch_disk,
            scratch_is_kept: matches!(request.scratch, Scratch::Persistent(_)),
            network: self.network(&request.network),
            template,
        };
        let identity = self.identity(request, &rootfs.config)?;
        let prepared = begun.elapsed();
        let (mut vm, channel) =
            Vm::spawn(&spec, &self.iii_vm).await.map_err(|source| BootError::Spawn { source: Box::new(source) })?;
        let mut restored = false;
        let ready = self.bring_up(&mut vm, channel, identity, &mut restored, run.path(), progress);
        let result = match tokio::time::timeout(BOOT_PATIENCE, ready).await {
            Ok(result) => result,
            Err(_) => Err(BootError::silent(BOOT_PATIENCE, run.path())),
        };
        match result {
            Ok((guest, adopted, driver, running)) => {
                let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                debug!(
                    vm = request.name,
                    prepared_us = micros(prepared),
                    running_us = micros(running - begun),
                    adopted_us = micros(begun.elapsed()),
                    "guest is up: microseconds since its boot was asked for"
                );
                Ok(Machine {
                    guest,
                    image_config: rootfs.config.clone(),
                    image_digest: rootfs.digest.clone(),
                    boot_id: adopted.boot_id,
                    kernel: adopted.kernel,
                    driver,
                    restored,
                    vm,
                    _scratch_lock: scratch_lock,
                    _run: run,
                })
            }
            Err(error) => {
                // The next attempt may need the same disk.
                vm.kill();
                vm.wait().await;
                Err(Failed { error, restored })
            }
        }
    }

    async fn bring_up(
        &self,
        vm: &mut Vm,
        channel: std::os::unix::net::UnixStream,
        mut identity: Identity,
        restored: &mut bool,
        run: &Path,
        progress: Watch<'_>,
    ) -> Result<(Guest, guest_client::Adopted, String, Instant), BootError> {
        let driver = loop {
            match vm.next_event().await {
                VmEvent::BuildingTemplate => progress(BootProgress::BuildingTemplate),
                VmEvent::Warning { message } => progress(BootProgress::Warning(message)),
                VmEvent::Running { driver, accel, restored: is_clone, .. } => {
                    *restored = is_clone;
                    break format!("{driver} on {accel}");
                }
                VmEvent::Exited(exit) => return Err(BootError::ended(exit)),
            }
        };
        let running = Instant::now();
        let guest =
            Guest::connect(channel).map_err(|source| BootError::Io { what: "the guest's channel".into(), source })?;
        let work = async {
            if !*restored {
                // A clone's hello was heard by its template.
                guest.ready().await?;
            }
            identity.unix_time_ns = unix_ns();
            guest.adopt(identity).await
        };
        let patience = if *restored { CLONE_PATIENCE } else { BOOT_PATIENCE };
        tokio::select! {
            adopted = work => match adopted {
                Ok(adopted) => Ok((guest, adopted, driver, running)),
                Err(source) => Err(BootError::Guest { source }),
            },
            exit = vm.wait() => Err(BootError::ended(exit)),
            () = tokio::time::sleep(patience) => Err(BootError::silent(patience, run)),
        }
    }

    fn scratch(&self, scratch: &Scratch, run: &Path) -> Result<(PathBuf, Option<Flock<File>>), BootError> {
        let blank = self.home.kit().join("scratch.ext4");
        if !blank.exists() {
            return Err(BootError::Kit { file: "scratch.ext4", kit: self.home.kit() });
        }
        let failed = |source| BootError::Io { what: "the writable disk".into(), source };
        match scratch {
            Scratch::Throwaway => {
                let path = run.join("scratch.ext4");
                require_space(run)?;
                scratch::copy(&blank, &path).map_err(failed)?;
                Ok((path, None))
            }
            Scratch::Persistent(path) => {
                let folder = path.parent().unwrap_or(path);
                fs::create_dir_all(folder).map_err(failed)?;
                if !path.exists() {
                    require_space(folder)?;
                    scratch::copy(&blank, path).map_err(failed)?;
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

    fn network(&self, network: &Network) -> Option<NetworkSpec> {
        let Network::Open { worker } = network else { return None };
        let engine = worker.as_ref().map(|worker| {
            let preface = serde_json::json!({ "worker": worker, "isolation": "microvm" }).to_string() + "\n";
            GatewayPort { port: self.engine_port, target: HostTarget::Unix { path: self.vm_socket.clone(), preface } }
        });
        Some(NetworkSpec {
            guest_mac: GUEST_MAC.into(),
            guest_address: GUEST,
            gateway_mac: GATEWAY_MAC.into(),
            gateway_address: GATEWAY,
            egress: Egress {
                gateway: engine.into_iter().collect(),
                private: env::var_os("III_DENY_PRIVATE_NETWORKS").is_none(),
                public: true,
            },
        })
    }

    fn identity(&self, request: &BootRequest, config: &ImageConfig) -> Result<Identity, BootError> {
        let mut entropy = vec![0; 64];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut entropy))
            .map_err(|source| BootError::Io { what: "entropy for the guest".into(), source })?;
        let mut env: BTreeMap<String, String> = config
            .env
            .iter()
            .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect();
        env.extend(request.env.clone());
        let networked = matches!(request.network, Network::Open { .. });
        Ok(Identity {
            entropy,
            unix_time_ns: unix_ns(),
            hostname: request.hostname.clone(),
            machine_id: Uuid::new_v4().simple().to_string(),
            network: networked.then(|| GuestNetwork {
                mac: GUEST_MAC.into(),
                address: GUEST,
                prefix_len: PREFIX_LEN,
                gateway: GATEWAY,
                dns: GATEWAY,
                mtu: MTU,
                hosts: [("host.iii.internal".to_owned(), GATEWAY)].into_iter().collect(),
            }),
            root: Disk { device: "/dev/vda".into(), filesystem: "erofs".into() },
            scratch: Some(Disk { device: "/dev/vdb".into(), filesystem: "ext4".into() }),
            ca_bundle_pem: self.ca_bundle.clone().filter(|_| networked),
            env,
            workdir: config.workdir.clone().unwrap_or_else(|| "/".into()),
            user: config.user.clone().unwrap_or_default(),
            memory_limit_bytes: None,
            open_files: OPEN_FILES,
        })
    }
}

impl Machine {
    pub(crate) fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Waits until the VM is gone. Cancel safe.
    pub(crate) async fn ended(&mut self) -> VmExit {
        self.vm.wait().await
    }

    /// Lets the guest end its programs and sync its disks, at most `grace`; then kills what is left.
    pub(crate) async fn stop(mut self, grace: Duration) {
        let orderly = async {
            let _ = self.guest.shutdown(grace).await;
            self.vm.wait().await
        };
        if tokio::time::timeout(grace + Duration::from_secs(1), orderly).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends the VM at once and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.vm.kill();
        self.vm.wait().await;
    }
}

/// The disk is sparse and grows; on a full one the guest's first writes would fail.
fn require_space(folder: &Path) -> Result<(), BootError> {
    let Ok(space) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
    let free_mib = (space.blocks_available() * space.fragment_size()) >> 20;
    if free_mib >= MIN_FREE_MIB {
        return Ok(());
    }
    Err(BootError::NoSpace { path: folder.to_owned(), free_mib, needed_mib: MIN_FREE_MIB })
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the other programs of this build are.
fn bin_dir() -> PathBuf {
    env::var_os("III_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
    })
}
