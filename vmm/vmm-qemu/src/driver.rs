//! From a spec to a running guest: restored from a template where possible, else booted.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::{TemplateUse, VmEvent, VmExit, VmSpec, Wires};
use vmm_host::{Accel, ConsoleEnd, Kit, Process, check_disks, describe};

use crate::arguments::{HostEnds, Shape, Start, arguments};
use crate::error::{QemuError, at};
use crate::full_disk::FullDisk;
use crate::key::Key;
use crate::qmp::{Heard, Monitor};
use crate::template::{Template, Templates, migration_capabilities};
use crate::tsc;

/// A restore takes 40 ms; on a badly overloaded machine it may take this long.
const RESTORE_LIMIT: Duration = Duration::from_secs(10);

/// What is settled before anything is started.
#[derive(Debug)]
pub struct Driver<'a> {
    spec: &'a VmSpec,
    program: PathBuf,
    kit: Kit,
    shape: Shape,
}

/// A guest whose processors run.
#[derive(Debug)]
pub struct Running {
    process: Process,
    monitor: Monitor,
}

impl<'a> Driver<'a> {
    /// Checks everything that can be checked without starting anything.
    ///
    /// # Errors
    /// [`QemuError`], with a hint where there is a next step.
    pub fn prepare(spec: &'a VmSpec, program: PathBuf, kit: Kit, accel: Accel) -> Result<Self, QemuError> {
        check_disks(spec)?;
        Templates::open(&spec.template_dir)?;
        let shape = Shape {
            accel,
            memory_mib: spec.memory.mib(),
            vcpus: spec.vcpus.get(),
            tsc_khz: tsc::khz(&spec.template_dir),
        };
        Ok(Self { spec, program, kit, shape })
    }

    /// Starts the guest and reports its way there, [`VmEvent::Running`] last. QEMU dies with the calling thread.
    ///
    /// # Errors
    /// [`QemuError`] when neither a restore nor a cold boot is possible.
    pub fn start(self, wires: Wires, since: Instant, report: &mut dyn FnMut(VmEvent)) -> Result<Running, QemuError> {
        let restored = match self.spec.template {
            TemplateUse::Clone => self.clone_template(&wires, report)?,
            TemplateUse::Never => None,
            TemplateUse::Discard => {
                let name = Key::new(&self.program, &self.kit, &self.shape)?.name()?;
                Templates::open(&self.spec.template_dir)?.remove(&name);
                None
            }
        };
        let (running, restored) = match restored {
            Some(running) => (running, true),
            None => (self.boot(&wires)?, false),
        };
        report(VmEvent::Running {
            driver: "qemu".to_owned(),
            accel: self.shape.accel.name().to_owned(),
            restored,
            driver_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        // Our copies of the wires close here: from now on their ends see QEMU's end.
        Ok(running)
    }

    /// `None` when a cold boot should be tried instead; the reason was reported.
    fn clone_template(&self, wires: &Wires, report: &mut dyn FnMut(VmEvent)) -> Result<Option<Running>, QemuError> {
        let templates = Templates::open(&self.spec.template_dir)?;
        let key = Key::new(&self.program, &self.kit, &self.shape)?;
        let name = key.name()?;
        let template = match templates.find(&name) {
            Ok(Some(template)) => Ok(template),
            Ok(None) => templates.make(&name, &key, &self.program, &self.kit, || report(VmEvent::BuildingTemplate)),
            Err(damaged) => Err(damaged),
        };
        let restored = template.and_then(|template| self.restore(&template, wires));
        match restored {
            Ok(running) => Ok(Some(running)),
            Err(error) if error.spares_cold_boot() => {
                templates.remove(&name);
                report(VmEvent::Warning { message: format!("booting without a template: {error}") });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn restore(&self, template: &Template, wires: &Wires) -> Result<Running, QemuError> {
        let state_fd = template.state.as_raw_fd();
        let start = Start::Restore { memory: &template.memory };
        let mut running = self.launch(wires, &start, &[state_fd])?;
        let deadline = Instant::now() + RESTORE_LIMIT;
        let monitor = &mut running.monitor;
        monitor.during("the restore");
        // All at once: QEMU takes them in order, and every round trip saved is one the guest runs earlier.
        let restored = monitor
            .send(&[
                ("qmp_capabilities", Value::Null),
                ("migrate-set-capabilities", migration_capabilities()),
                ("migrate-incoming", json!({ "uri": format!("fd:{state_fd}") })),
            ])
            .and_then(|()| {
                monitor.answers(&["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"], deadline)
            })
            .and_then(|_| monitor.migration_completed(deadline))
            .and_then(|()| monitor.send(&[("cont", Value::Null)]))
            .and_then(|()| monitor.answers(&["cont"], deadline));
        match restored {
            Ok(_) => Ok(running),
            Err(error) => {
                running.process.kill();
                let _ = running.process.wait();
                let reason = format!("{error} ({})", running.process.last_message());
                Err(QemuError::Damaged { path: template.folder.clone(), reason })
            }
        }
    }

    fn boot(&self, wires: &Wires) -> Result<Running, QemuError> {
        let mut running = self.launch(wires, &Start::Boot(&self.kit), &[])?;
        let monitor = &mut running.monitor;
        monitor.during("the boot");
        let booted = monitor
            .send(&[("qmp_capabilities", Value::Null)])
            .and_then(|()| monitor.answers(&["qmp_capabilities"], Instant::now() + RESTORE_LIMIT));
        match booted {
            Ok(_) => Ok(running),
            Err(QemuError::Ended { during, .. }) => {
                let _ = running.process.wait();
                Err(QemuError::Ended { during, said: running.process.last_message() })
            }
            Err(error) => Err(error),
        }
    }

    fn launch(&self, wires: &Wires, start: &Start<'_>, more: &[i32]) -> Result<Running, QemuError> {
        let (monitor, monitor_end) = UnixStream::pair().map_err(at("a socket pair"))?;
        let ends = HostEnds {
            name: &self.spec.name,
            root_disk: &self.spec.root_disk,
            scratch_disk: &self.spec.scratch_disk,
            scratch_is_kept: self.spec.scratch_is_kept,
            guest_fd: wires.guest.as_raw_fd(),
            net_fd: wires.net.as_raw_fd(),
            monitor_fd: monitor_end.as_raw_fd(),
        };
        let list = arguments(&self.shape, &ends, start);
        let mut inherited = vec![ends.guest_fd, ends.net_fd, ends.monitor_fd];
        inherited.extend_from_slice(more);
        let process = Process::start(&self.program, &list, inherited, &self.spec.run_dir, "qemu")?;
        let monitor = Monitor::new(monitor).map_err(|source| QemuError::Monitor { during: "start", source })?;
        Ok(Running { process, monitor })
    }
}

impl Running {
    /// Waits for the end of the guest, reporting what a person should know meanwhile.
    #[must_use]
    pub fn wait(mut self, report: &mut dyn FnMut(VmEvent)) -> VmExit {
        let (mut was_reset, mut disk) = (false, FullDisk::default());
        self.monitor.follow(|heard| {
            if let Heard::Event { name: "SHUTDOWN", data } = &heard {
                was_reset = data["reason"] == "guest-reset" || data["reason"] == "guest-panic";
            }
            disk.heed(&heard, Instant::now(), |message| report(VmEvent::Warning { message }))
        });
        if disk.gave_up {
            self.process.kill();
        }
        let status = self.process.wait();
        let console_tail = self.process.console_tail();
        let failed = |reason: String| VmExit::Failed { reason, hint: None, console_tail: console_tail.clone() };
        match status {
            _ if disk.gave_up => VmExit::Failed {
                reason: "the disk that holds its files is full on the host".to_owned(),
                hint: Some("free some space on the disk of III_HOME".to_owned()),
                console_tail: String::new(),
            },
            // A panicking kernel resets the machine, and so does an orderly reboot.
            Ok(status) if status.success() && was_reset && ConsoleEnd::of(&console_tail) == ConsoleEnd::KernelPanic => {
                failed("the guest's kernel panicked".to_owned())
            }
            Ok(status) if status.success() => VmExit::Stopped,
            Ok(status) => failed(format!("QEMU ended with {}: {}", describe(status), self.process.last_message())),
            Err(error) => failed(format!("the end of QEMU could not be observed: {error}")),
        }
    }
}
