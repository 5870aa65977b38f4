//! From a spec to a running guest: forked or restored from a snapshot if that was asked for, restored from a template where
//! possible, else booted.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::{TemplateUse, VmEvent, VmSpec, VmStart, Wires};
use vmm_host::{Accel, Kit, Manner, Process, check_disks, check_root_disk};

use crate::arguments::{HostEnds, Shape, Start, arguments};
use crate::error::{QemuError, at};
use crate::key::Key;
use crate::layers::{self, Layers};
use crate::nursery::{self, Birthplace, ChildEnds, QemuEnds};
use crate::qmp::Monitor;
use crate::running::Running;
use crate::saved::{DRIVER, Machine, Saved};
use crate::sparse;
use crate::take::{Forking, Source};
use crate::template::{Template, Templates, migration_capabilities};
use crate::tsc;

/// A restore takes 40 ms; on a badly overloaded machine it may take this long.
const RESTORE_LIMIT: Duration = Duration::from_secs(10);

/// QEMU.
#[derive(Debug, Clone)]
pub struct Program {
    pub path: PathBuf,
    /// Not the distribution's, which cannot fork a machine.
    pub may_be_ours: bool,
}

/// What is settled before anything is started.
#[derive(Debug)]
pub struct Driver<'a> {
    spec: &'a VmSpec,
    program: Program,
    kit: Kit,
    shape: Shape,
    key: Key,
    snapshot: Option<Saved>,
}

/// A saved machine's files.
struct Files<'a> {
    start: Start<'a>,
    memory_path: &'a Path,
    memory: File,
    state: &'a File,
    layers: Layers,
}

impl<'a> Driver<'a> {
    /// Checks everything that can be checked without starting anything.
    ///
    /// # Errors
    /// [`QemuError`], with a hint where there is a next step.
    pub fn prepare(spec: &'a VmSpec, program: Program, kit: Kit, accel: Accel) -> Result<Self, QemuError> {
        let snapshot = match &spec.template {
            TemplateUse::Snapshot { folder, .. } => Some(Saved::open(folder)?),
            TemplateUse::Clone | TemplateUse::Never | TemplateUse::Discard => None,
        };
        // A snapshot brings its own writable disk.
        if snapshot.is_some() {
            check_root_disk(spec)?
        } else {
            check_disks(spec)?
        }
        Templates::open(&spec.template_dir)?;
        let (memory, vcpus) =
            snapshot.as_ref().map_or((spec.memory, spec.vcpus), |saved| (saved.info.memory, saved.info.vcpus));
        let shape =
            Shape { accel, memory_mib: memory.mib(), vcpus: vcpus.get(), tsc_khz: tsc::khz(&spec.template_dir) };
        let key = Key::new(&program.path, &kit, &shape, spec.scratch_is_kept)?;
        Ok(Self { spec, program, kit, shape, key, snapshot })
    }

    /// Starts the guest and reports its way there, [`VmEvent::Running`] last. QEMU dies with the calling thread; a
    /// forked one with this process, or when [`Running`] is dropped.
    ///
    /// # Errors
    /// [`QemuError`] when neither a restore nor a cold boot is possible.
    pub fn start(self, wires: Wires, since: Instant, report: &mut dyn FnMut(VmEvent)) -> Result<Running, QemuError> {
        let restored = match (&self.spec.template, &self.snapshot) {
            (TemplateUse::Snapshot { verify, .. }, Some(saved)) => {
                Some(self.continue_snapshot(saved, *verify, &wires)?)
            }
            (TemplateUse::Clone, _) => self.clone_template(&wires, report)?.map(|running| (running, VmStart::Restored)),
            (TemplateUse::Never | TemplateUse::Snapshot { .. }, _) => None,
            (TemplateUse::Discard, _) => {
                Templates::open(&self.spec.template_dir)?.remove(&self.key.name()?);
                None
            }
        };
        let (running, start) = match restored {
            Some(running) => running,
            None => (self.boot(&wires)?, VmStart::Booted),
        };
        report(VmEvent::Running {
            driver: DRIVER.to_owned(),
            accel: self.shape.accel.name().to_owned(),
            start,
            driver_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        // Our copies of the wires close here: from now on their ends see QEMU's end.
        Ok(running)
    }

    /// `None` when a cold boot should be tried instead; the reason was reported.
    fn clone_template(&self, wires: &Wires, report: &mut dyn FnMut(VmEvent)) -> Result<Option<Running>, QemuError> {
        let templates = Templates::open(&self.spec.template_dir)?;
        let key = &self.key;
        let name = key.name()?;
        let template = match templates.find(&name) {
            Ok(Some(template)) => Ok(template),
            Ok(None) => templates.make(&name, key, &self.program.path, &self.kit, || report(VmEvent::BuildingTemplate)),
            Err(damaged) => Err(damaged),
        };
        let restored = template.and_then(|template| self.restore_template(&template, wires));
        match restored {
            Ok(running) => Ok(Some(running)),
            Err(error) if error.spares_cold_boot() => {
                // What stands there now is somebody else's work.
                if !matches!(error, QemuError::Replaced { .. }) {
                    templates.remove(&name);
                }
                report(VmEvent::Warning { message: format!("booting without a template: {error}") });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn restore_template(&self, template: &Template, wires: &Wires) -> Result<Running, QemuError> {
        // The guest's memory has this file system mounted: the disk must be as it was at that moment.
        if let Some(scratch) = &template.scratch {
            let disk = &self.spec.scratch_disk;
            become_copy(disk, scratch).map_err(|source| QemuError::Scratch { path: disk.clone(), source })?;
        }
        let files = Files {
            start: Start::Restore { memory: &template.memory },
            memory_path: &template.memory,
            memory: template.memory_file.try_clone().map_err(at(&template.memory))?,
            state: &template.state,
            layers: Layers::raw(&self.spec.scratch_disk),
        };
        self.restore(files, wires, |reason| QemuError::Damaged { path: template.folder.clone(), reason })
    }

    /// There is no other way to this machine: what fails is an error.
    fn continue_snapshot(&self, saved: &Saved, verify: bool, wires: &Wires) -> Result<(Running, VmStart), QemuError> {
        saved.check(&self.key, &self.spec.root_disk)?;
        let layers = Layers::inherit(saved.folder(), &saved.info.disks, &self.spec.run_dir)
            .map_err(|source| saved.not_linked(&self.spec.run_dir, source))?;
        if let Some(place) = saved.birthplace()? {
            return Ok((self.fork(saved.folder(), &place, layers, wires)?, VmStart::Forked));
        }
        let restored = self.restore_snapshot(saved, saved.machine(verify)?, layers, wires)?;
        Ok((restored, VmStart::Restored))
    }

    /// A child of the snapshot's source: its disk is still the source's, up to a new layer.
    fn fork(&self, folder: &Path, place: &Birthplace, layers: Layers, wires: &Wires) -> Result<Running, QemuError> {
        let (monitor, monitor_end) = UnixStream::pair().map_err(at("a socket pair"))?;
        let ends = ChildEnds { guest: wires.guest.as_fd(), net: wires.net.as_fd(), monitor: monitor_end.as_fd() };
        let born = nursery::birth(folder, place, &ends)?;
        drop(monitor_end);
        let process = Process::forked(born.process, born.console, born.messages, &self.spec.run_dir, "qemu")?;
        let monitor = Monitor::new(monitor).map_err(|source| QemuError::Monitor { during: "start", source })?;
        let nodes_made = place.nodes_made + 1;
        let source = Source {
            top_node: layers::node_name(nodes_made),
            nodes_made,
            forking: Forking::Possible,
            ..self.source(layers, born.base, place.ends)
        };
        let mut running = Running { process, monitor, source };
        match self.continue_fork(&mut running, &place.top_node) {
            Ok(()) => Ok(running),
            Err(QemuError::Ended { during, .. }) => {
                let _ = running.process.wait();
                Err(QemuError::Ended { during, said: running.process.last_message() })
            }
            Err(error) => Err(error),
        }
    }

    /// With a layer of its own on the disk, it goes on.
    fn continue_fork(&self, running: &mut Running, below: &str) -> Result<(), QemuError> {
        let Running { monitor, source, .. } = running;
        monitor.during("the fork");
        let deadline = Instant::now() + RESTORE_LIMIT;
        nursery::await_child(monitor, deadline)?;
        let overlay = layers::overlay(&source.top_node, source.layers.top(), self.spec.scratch_is_kept);
        monitor.send(&[
            ("blockdev-add", overlay),
            ("blockdev-snapshot", json!({ "node": below, "overlay": source.top_node })),
            ("cont", Value::Null),
        ])?;
        monitor.answers(&["blockdev-add", "blockdev-snapshot", "cont"], deadline).map(drop)
    }

    /// Whether QEMU has to be asked; the distribution's cannot, nor can a machine whose disk is kept be saved.
    fn may_fork(&self) -> bool {
        self.program.may_be_ours && self.shape.accel == Accel::Tcg && !self.spec.scratch_is_kept
    }

    /// What snapshots of a machine need that is started now.
    fn source(&self, layers: Layers, memory: Option<File>, ends: QemuEnds) -> Source {
        Source {
            key: self.key.clone(),
            root_disk: self.spec.root_disk.clone(),
            run_dir: self.spec.run_dir.clone(),
            layers,
            disk_is_kept: self.spec.scratch_is_kept,
            memory,
            top_node: "scratch".to_owned(),
            nodes_made: 0,
            ends,
            forking: if self.may_fork() { Forking::Unknown } else { Forking::Impossible },
            nurseries: Vec::new(),
        }
    }

    fn restore_snapshot(
        &self,
        saved: &Saved,
        machine: Machine,
        layers: Layers,
        wires: &Wires,
    ) -> Result<Running, QemuError> {
        let files = Files {
            start: Start::RestoreSnapshot { memory: &machine.memory },
            memory_path: &machine.memory,
            memory: machine.memory_file,
            state: &machine.state,
            layers,
        };
        self.restore(files, wires, |reason| saved.damaged(reason))
    }

    fn restore(
        &self,
        files: Files<'_>,
        wires: &Wires,
        damaged: impl FnOnce(String) -> QemuError,
    ) -> Result<Running, QemuError> {
        let state_fd = files.state.as_raw_fd();
        let path = files.memory_path;
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let memory = files.memory.metadata().map(identity).map_err(at(path))?;
        // QEMU opens the memory by its name, later than we opened the rest: it must be of the same machine.
        let same_memory = || match fs::metadata(path).map(identity) {
            Ok(named) if named == memory => Ok(()),
            _ => Err(QemuError::Replaced { path: path.to_owned() }),
        };
        let mut running = self.launch(wires, &files.start, files.layers, Some(files.memory), &[state_fd])?;
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
            .and_then(|()| same_memory())
            .and_then(|()| monitor.send(&[("cont", Value::Null)]))
            .and_then(|()| monitor.answers(&["cont"], deadline));
        match restored {
            Ok(_) => Ok(running),
            Err(error) => {
                running.process.kill();
                let _ = running.process.wait();
                let said = running.process.last_message();
                match error {
                    // Want of time or memory says nothing of what was saved.
                    QemuError::TooSlow { .. } | QemuError::Replaced { .. } => Err(error),
                    QemuError::Ended { during, .. } if said.contains("memory") => {
                        Err(QemuError::Ended { during, said })
                    }
                    error => Err(damaged(format!("{error} ({said})"))),
                }
            }
        }
    }

    fn boot(&self, wires: &Wires) -> Result<Running, QemuError> {
        let layers = Layers::raw(&self.spec.scratch_disk);
        let mut running = self.launch(wires, &Start::Boot(&self.kit), layers, None, &[])?;
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

    fn launch(
        &self,
        wires: &Wires,
        start: &Start<'_>,
        layers: Layers,
        memory: Option<File>,
        more: &[i32],
    ) -> Result<Running, QemuError> {
        let (monitor, monitor_end) = UnixStream::pair().map_err(at("a socket pair"))?;
        let ends = HostEnds {
            name: &self.spec.name,
            root_disk: &self.spec.root_disk,
            scratch: &layers,
            scratch_is_kept: self.spec.scratch_is_kept,
            guest_fd: wires.guest.as_raw_fd(),
            net_fd: wires.net.as_raw_fd(),
            monitor_fd: monitor_end.as_raw_fd(),
        };
        let numbers = QemuEnds { guest: ends.guest_fd, net: ends.net_fd, monitor: ends.monitor_fd };
        let list = arguments(&self.shape, &ends, start);
        let mut inherited = vec![ends.guest_fd, ends.net_fd, ends.monitor_fd];
        inherited.extend_from_slice(more);
        // Of what QEMU translates, a guest that idles needs a little here and there: whole huge pages would be wasted.
        let manner = Manner { huge_pages: self.shape.accel == Accel::Kvm, own_group: self.may_fork() };
        let process = Process::start(&self.program.path, &list, inherited, &self.spec.run_dir, "qemu", manner)?;
        let monitor = Monitor::new(monitor).map_err(|source| QemuError::Monitor { during: "start", source })?;
        let source = self.source(layers, memory, numbers);
        Ok(Running { process, monitor, source })
    }
}

/// Whatever `disk` holds, it holds the same as `content` afterwards: a hole there must be a hole here.
fn become_copy(disk: &Path, content: &File) -> io::Result<()> {
    let own = File::options().write(true).open(disk)?;
    own.set_len(0)?;
    own.set_len(content.metadata()?.len())?;
    sparse::copy(content, &own)
}
