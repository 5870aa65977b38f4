//! A guest that can be asked, and the VM around it.

use std::fs::File;
use std::time::Duration;

use guest_client::{Adopted, Guest};
use nix::fcntl::Flock;
use vmm::{Vm, VmExit, VmStart};

use super::booted::Booted;
use crate::home::RunDir;

/// How a machine came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartKind {
    Booted,
    /// From a template or a snapshot.
    Restored,
    /// From its source's process.
    Forked,
    /// It had been booted before anybody asked.
    Waited,
}

impl StartKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Restored => "restored",
            Self::Forked => "forked",
            Self::Waited => "waited",
        }
    }
}

/// A guest that can be asked. Dropping it kills the VM and removes what it had on the host.
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    /// Such as `qemu on tcg`.
    pub(crate) driver: String,
    /// Its processors are emulated: what it runs for the first time is translated first.
    pub(crate) emulated: bool,
    pub(crate) start: StartKind,
    pub(super) vm: Vm,
    _scratch_lock: Option<Flock<File>>,
    // Last, so that the directory goes after the VM.
    _run: RunDir,
}

impl Machine {
    pub(super) fn new(booted: Booted, adopted: Adopted, waited: bool) -> Self {
        let start = match (waited, booted.start) {
            (true, _) => StartKind::Waited,
            (false, VmStart::Forked) => StartKind::Forked,
            (false, VmStart::Restored) => StartKind::Restored,
            (false, VmStart::Booted) => StartKind::Booted,
        };
        Self {
            guest: booted.guest,
            boot_id: adopted.boot_id,
            kernel: adopted.kernel,
            driver: booted.driver,
            emulated: booted.emulated,
            start,
            vm: booted.vm,
            _scratch_lock: booted.scratch_lock,
            _run: booted.run,
        }
    }

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
