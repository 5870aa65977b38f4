//! The supervisor's side: starts the VM's process and tells how it ended.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use vmm::{VmEvent, VmExit, VmSpec, VmStart, Wires};
use vmm_host::{ConsoleEnd, Manner, Process, check_disks, describe};

use crate::error::KrunError;
use crate::machine::{ENTER_FLAG, Ends, MAX_VCPUS};

/// What is settled before anything is started.
#[derive(Debug)]
pub struct Driver<'a> {
    spec: &'a VmSpec,
    program: PathBuf,
}

/// A guest whose processors run.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

impl<'a> Driver<'a> {
    /// Checks everything that can be checked without starting anything.
    ///
    /// # Errors
    /// [`KrunError`], with a hint where there is a next step.
    pub fn prepare(spec: &'a VmSpec) -> Result<Self, KrunError> {
        check_disks(spec)?;
        if spec.vcpus.get() > u32::from(MAX_VCPUS) {
            return Err(KrunError::TooManyVcpus { given: spec.vcpus.get(), max: MAX_VCPUS });
        }
        let program = std::env::current_exe().map_err(|source| KrunError::OwnProgram { source })?;
        Ok(Self { spec, program })
    }

    /// Starts the guest and reports [`VmEvent::Running`]. The VM dies with the calling thread.
    ///
    /// # Errors
    /// [`KrunError`] when the process does not start; what libkrun refuses is known when it has ended.
    pub fn start(self, wires: Wires, since: Instant, report: &mut dyn FnMut(VmEvent)) -> Result<Running, KrunError> {
        let ends = Ends { guest: wires.guest.as_raw_fd(), net: wires.net.as_raw_fd() };
        let arguments =
            [ENTER_FLAG.to_owned(), self.spec.run_dir.join("vm.json").display().to_string(), ends.to_argument()];
        let inherited = vec![ends.guest, ends.net];
        let manner = Manner { huge_pages: true, own_group: false };
        let process = Process::start(&self.program, &arguments, inherited, &self.spec.run_dir, "libkrun", manner)?;
        report(VmEvent::Running {
            driver: "libkrun".to_owned(),
            accel: "kvm".to_owned(),
            start: VmStart::Booted,
            driver_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        // Our copies of the wires close here: from now on their ends see the VM's end.
        Ok(Running { process })
    }
}

impl Running {
    /// Waits for the end of the guest.
    #[must_use]
    pub fn wait(mut self) -> VmExit {
        let status = self.process.wait();
        let console_tail = self.process.console_tail();
        let failed = |reason: String| VmExit::Failed { reason, hint: None, console_tail: console_tail.clone() };
        match status {
            // A panicking kernel resets the machine, and so does an orderly reboot, and a triple fault.
            Ok(status) if status.success() => match ConsoleEnd::of(&console_tail) {
                ConsoleEnd::Orderly => VmExit::Stopped,
                ConsoleEnd::KernelPanic => failed("the guest's kernel panicked".to_owned()),
                ConsoleEnd::Silent => {
                    failed("the machine was reset, and the guest's kernel said nothing of it".to_owned())
                }
            },
            Ok(status) => failed(format!("libkrun ended with {}: {}", describe(status), self.process.last_message())),
            Err(error) => failed(format!("the end of libkrun could not be observed: {error}")),
        }
    }
}
