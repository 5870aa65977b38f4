//! The only place where image, VM and guest meet.
//!
//! ```text
//! image ─ Store::ensure ─► EROFS ┐
//! kit ─ scratch::copy ──► ext4 ──┼─► VmSpec ─ Booted::start ─► identity ─ adopt ─► Machine
//! network: slot, relay ──────────┘        ▲
//!                          warm: VMs that wait, booted
//! ```

mod boot_error;
mod booted;
mod handle;
mod identity;
mod network;
mod saved;
mod scratch;
mod warm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use guest_client::Adopted;
use guest_protocol::Identity;
use oci::{ImageRef, Refresh, Rootfs, Store};
use tracing::debug;
use vmm::{AccelChoice, DriverChoice, ROOT_DISK_BYTES, TemplateUse};

pub(crate) use boot_error::BootError;
pub(crate) use handle::Machine;
pub(crate) use network::{GATEWAY, Network};
pub(crate) use saved::{RestoreRequest, SaveError};

use crate::catalog;
use crate::home::{self, Home};
use crate::turns::{self, Turns};
use booted::{Booted, Plan};
use network::Slot;
use warm::{Kind, Warm};

/// Until the guest has adopted its identity, and before that for a turn; a cold boot in emulation on a busy machine takes most
/// of it.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// Until a guest that was restored from a template has done so; after it a cold boot is tried.
const CLONE_PATIENCE: Duration = Duration::from_secs(45);

/// VMs that start at once, besides one per processor: on two, fifty children took a quarter longer with 8 at once than with
/// 3 (`make bench AREAS=fork`), and of thirty boots at once on a slow machine 27 were not through in two minutes.
const STARTS_BEYOND_PROCESSORS: usize = 1;

/// A start that takes longer goes on without its turn: one that hangs must not hold up the others.
const LONGEST_TURN: Duration = Duration::from_secs(30);

/// What VMs run on, and how much memory those may have that wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choices {
    pub(crate) driver: DriverChoice,
    pub(crate) accel: AccelChoice,
    pub(crate) warm_pool_mib: u32,
}

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
    warm: Warm,
    /// Who may start a VM now.
    turns: Turns,
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
pub(crate) enum Scratch {
    /// Gone with the machine.
    Throwaway,
    /// Made when it is not there; locked for the machine's life.
    Persistent(PathBuf),
    /// A saved machine's, which the VM brings along.
    Saved,
}

impl Scratch {
    /// Whether it outlives its machine.
    fn is_kept(&self) -> bool {
        matches!(self, Self::Persistent(_))
    }
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
    /// Whether it had been booted before anybody asked.
    warm: bool,
}

impl From<BootError> for Failed {
    fn from(error: BootError) -> Self {
        Self { error, restored: false, warm: false }
    }
}

impl Machines {
    pub(crate) fn new(
        home: Home,
        engine_port: u16,
        vm_socket: PathBuf,
        choices: Choices,
    ) -> Result<Arc<Self>, oci::StoreError> {
        home::sweep(&home.run());
        let options = oci::StoreOptions { image_bytes: ROOT_DISK_BYTES, registry: oci::RegistryOptions::from_env() };
        let store = Store::open(&home.images(), options)?;
        let bundle =
            env::var_os("SSL_CERT_FILE").map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from);
        let ca_bundle = fs::read_to_string(bundle).ok().filter(|bundle| !bundle.is_empty());
        let iii_vm = bin_dir().join("iii-vm");
        let Choices { driver, accel, warm_pool_mib } = choices;
        let warm = Warm::new(warm_pool_mib);
        let turns = Turns::new(starts_at_once(), LONGEST_TURN, BOOT_PATIENCE);
        Ok(Arc::new(Self { home, store, iii_vm, engine_port, vm_socket, ca_bundle, driver, accel, warm, turns }))
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

    /// A machine of an image, and the image.
    pub(crate) async fn boot(
        self: &Arc<Self>,
        request: BootRequest,
        progress: Watch<'_>,
    ) -> Result<(Machine, Rootfs), BootError> {
        let rootfs = self.image(&request.image, progress).await?;
        let template = if env::var_os("III_NO_TEMPLATE").is_none() { TemplateUse::Clone } else { TemplateUse::Never };
        let plan = Plan::new(&request, &rootfs, template)?;
        progress(BootProgress::Booting);
        match self.attempt(&request, &rootfs, &plan, progress).await {
            Err(Failed { error, warm: true, .. }) => {
                let message = format!("a VM that waited is of no use, booting instead: {}", error.explain());
                progress(BootProgress::Warning(message));
                self.attempt(&request, &rootfs, &Plan { template: TemplateUse::Never, ..plan }, progress).await
            }
            Err(Failed { error, restored: true, .. }) => {
                let message = format!("a clone of the template did not come up, booting instead: {}", error.explain());
                progress(BootProgress::Warning(message));
                let plan = Plan { template: TemplateUse::Discard, ..plan };
                self.attempt(&request, &rootfs, &plan, progress).await
            }
            other => other,
        }
        .map(|machine| (machine, rootfs))
        .map_err(|failed| failed.error)
    }

    /// One VM, taken from those that wait or started, up to an adopted identity; nothing of it is left when it fails.
    async fn attempt(
        self: &Arc<Self>,
        request: &BootRequest,
        rootfs: &Rootfs,
        plan: &Plan,
        progress: Watch<'_>,
    ) -> Result<Machine, Failed> {
        let begun = Instant::now();
        let kind = Kind::of(plan);
        let take = || kind.as_ref().and_then(|kind| self.warm.take(kind));
        // One that is up already takes no turn; and another may have come up meanwhile.
        let (waited, _turn) = match take() {
            Some(booted) => (Some(booted), None),
            None => {
                let turn = self.turns.take().await;
                (take(), turn)
            }
        };
        let warm = waited.is_some();
        let mut booted = match waited {
            Some(booted) => booted,
            None => match tokio::time::timeout(BOOT_PATIENCE, Booted::start(self, plan, progress)).await {
                Ok(started) => started?,
                Err(_) => return Err(BootError::silent(BOOT_PATIENCE, Path::new("")).into()),
            },
        };
        let restored = booted.is_restored();
        let identity = identity::identity(request, &rootfs.config, booted.slot, self.ca_bundle.as_deref())?;
        match adopt(&mut booted, identity, warm).await {
            Ok(adopted) => {
                debug!(
                    vm = request.name,
                    prepared_us = micros(booted.prepared.saturating_duration_since(begun)),
                    running_us = micros(booted.running.saturating_duration_since(begun)),
                    adopted_us = micros(begun.elapsed()),
                    "guest is up: microseconds since its boot was asked for"
                );
                if !restored {
                    Warm::refill(self, plan);
                }
                Ok(Machine::new(booted, adopted, warm))
            }
            Err(error) => {
                // The next attempt may need the same disk.
                booted.vm.kill();
                booted.vm.wait().await;
                Err(Failed { error, restored, warm })
            }
        }
    }

    /// Looks after the VMs that wait; call it now and then.
    pub(crate) fn tend(&self) {
        self.warm.expire();
    }

    /// No VM waits any more.
    pub(crate) fn close(&self) {
        self.warm.close();
    }
}

/// Gives the guest its identity.
async fn adopt(booted: &mut Booted, mut identity: Identity, warm: bool) -> Result<Adopted, BootError> {
    let (guest, restored) = (booted.guest.clone(), booted.is_restored());
    let work = async {
        if !restored && !warm {
            // A clone's hello was heard by its template.
            guest.ready().await?;
        }
        identity.unix_time_ns = identity::unix_ns();
        guest.adopt(identity).await
    };
    let patience = if restored || warm { CLONE_PATIENCE } else { BOOT_PATIENCE };
    booted.until_ready(work, patience).await
}

/// More than these gain nothing: they would only stand in the way of others.
pub(crate) fn starts_at_once() -> usize {
    turns::processors() + STARTS_BEYOND_PROCESSORS
}

/// As logs have it.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Where the other programs of this build are.
fn bin_dir() -> PathBuf {
    env::var_os("III_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
    })
}
