//! Machines that are saved, and machines that go on where a saved one was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_client::GuestError;
use guest_protocol::{Origin, Renewal};
use tracing::debug;
use vmm::{CommandError, NoSnapshot, SnapshotInfo, SnapshotPurpose, SnapshotRequest, SnapshotTaken, TemplateUse};

use super::booted::{Booted, Plan};
use super::{BootError, BootProgress, Machine, Machines, Network, Scratch, identity, micros};

/// A guest that does not fall silent by then is not saved.
const SILENCE: Duration = Duration::from_secs(10);

/// Until a restored guest has taken its new identity.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(60);

/// Longer than the slowest disk takes to write a guest's memory: beyond it the VM's process hangs, and whoever waits
/// for the machine would hang with it.
const ANSWER: Duration = Duration::from_secs(600);

/// Why a machine was not saved. It goes on as before, unless it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("the guest did not fall silent")]
    Guest { source: GuestError },
    #[error(transparent)]
    Vm(#[from] CommandError),
    #[error("the VM's process did not answer within {} s", ANSWER.as_secs())]
    NoAnswer,
}

/// What a restored machine is to be.
#[derive(Debug, Clone)]
pub(crate) struct RestoreRequest {
    pub(crate) name: String,
    /// Complete, as [`Machine::save`] made it.
    pub(crate) folder: PathBuf,
    /// Reads the memory to its end first.
    pub(crate) verify: bool,
    pub(crate) network: bool,
    pub(crate) hostname: String,
    pub(crate) origin: Origin,
}

impl Machine {
    /// Saves the machine as it is at one moment, into a folder that does not exist yet. Its programs stand still for that
    /// moment, and hear nothing of the host for a little longer.
    ///
    /// Whoever cancels this ends the machine next: its guest says nothing any more.
    pub(crate) async fn save(&mut self, folder: &Path, purpose: SnapshotPurpose) -> Result<SnapshotTaken, SaveError> {
        let frozen = self.guest.freeze(SILENCE).await.map_err(|source| SaveError::Guest { source })?;
        let request = SnapshotRequest { folder: folder.to_owned(), leave_paused: false, purpose };
        let taken = tokio::time::timeout(ANSWER, self.vm.snapshot(request)).await;
        frozen.thaw();
        let Ok(taken) = taken else { return Err(self.unknown_state().await) };
        let taken = taken?;
        self.set_clock().await;
        Ok(taken)
    }

    pub(crate) async fn pause(&mut self) -> Result<(), SaveError> {
        match tokio::time::timeout(ANSWER, self.vm.pause()).await {
            Ok(paused) => Ok(paused?),
            Err(_) => Err(self.unknown_state().await),
        }
    }

    pub(crate) async fn resume(&mut self) -> Result<(), SaveError> {
        let Ok(resumed) = tokio::time::timeout(ANSWER, self.vm.resume()).await else {
            return Err(self.unknown_state().await);
        };
        resumed?;
        self.set_clock().await;
        Ok(())
    }

    /// A VM that has not answered may stand still or run, be saved or not: it is ended.
    async fn unknown_state(&mut self) -> SaveError {
        self.kill().await;
        SaveError::NoAnswer
    }

    /// The guest's clock stood still with it. One that does not answer keeps a wrong one: that is its own loss.
    async fn set_clock(&self) {
        let _ = tokio::time::timeout(SILENCE, self.guest.set_clock(identity::unix_ns())).await;
    }
}

impl Machines {
    /// A machine that goes on where the saved one was, as somebody else.
    pub(crate) async fn restore(self: &Arc<Self>, request: RestoreRequest) -> Result<Machine, BootError> {
        let begun = Instant::now();
        let info = SnapshotInfo::read(&request.folder).map_err(unreadable)?;
        let _turn = self.turns.take().await;
        let network = if request.network { Network::Open { worker: None } } else { Network::None };
        let plan = Plan {
            name: request.name,
            root_disk: info.root_disk.clone(),
            memory: info.memory,
            vcpus: info.vcpus,
            network,
            scratch: Scratch::Saved,
            template: TemplateUse::Snapshot { folder: request.folder, verify: request.verify },
        };
        let quiet = |_: BootProgress| {};
        let mut booted = Booted::start(self, &plan, &quiet).await.map_err(|failed| failed.error)?;
        let renewal = Renewal {
            entropy: identity::entropy()?,
            unix_time_ns: identity::unix_ns(),
            hostname: request.hostname,
            machine_id: identity::machine_id(),
            network: request.network.then(|| booted.slot.guest()),
            origin: request.origin,
        };
        let guest = booted.guest.clone();
        match booted.until_ready(guest.renew(renewal), RENEWAL_PATIENCE).await {
            Ok(adopted) => {
                debug!(
                    prepared_us = micros(booted.prepared.saturating_duration_since(begun)),
                    running_us = micros(booted.running.saturating_duration_since(begun)),
                    renewed_us = micros(begun.elapsed()),
                    "guest is renewed: microseconds since its restore was asked for"
                );
                Ok(Machine::new(booted, adopted, false))
            }
            Err(error) => {
                booted.vm.kill();
                booted.vm.wait().await;
                Err(error)
            }
        }
    }
}

fn unreadable(error: NoSnapshot) -> BootError {
    BootError::Snapshot { reason: error.to_string(), hint: error.hint() }
}
