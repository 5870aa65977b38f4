//! Where VMs, snapshots and the image they share lie, and how a VM is brought up there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest_client::Guest;
use vmm::{
    AccelChoice, CommandError, DriverChoice, MemoryMib, SnapshotPurpose, SnapshotRequest, SnapshotTaken, TemplateUse,
    VcpuCount, Vm, VmEvent, VmSpec, VmStart,
};

pub(crate) const III_VM: &str = env!("CARGO_BIN_EXE_iii-vm");
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn home() -> PathBuf {
    let home = std::env::var_os("III_HOME").map(PathBuf::from);
    home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".iii"))).expect("HOME is set")
}

pub(crate) fn kit() -> PathBuf {
    let kit = home().join("lib/kit");
    assert!(kit.join("kit.json").is_file(), "these tests boot guests: run `make kit` first ({})", kit.display());
    kit
}

/// Whether the QEMU of these tests can fork a machine: it knows the word.
pub(crate) fn qemu_forks() -> bool {
    let kits = kit().join("qemu-system-x86_64");
    let Some(program) = std::env::var_os("III_QEMU").map(PathBuf::from).or_else(|| kits.exists().then_some(kits))
    else {
        return false;
    };
    let word = b"x-nursery";
    fs::read(&program).unwrap().windows(word.len()).any(|bytes| bytes == word)
}

/// A folder in which VMs, snapshots and the image they share lie.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("image")).unwrap().set_len(vmm::ROOT_DISK_BYTES).unwrap();
        fs::create_dir(folder.path().join("snapshots")).unwrap();
        Self { folder }
    }

    pub(crate) fn snapshot(&self, name: &str) -> PathBuf {
        self.folder.path().join("snapshots").join(name)
    }

    pub(crate) fn spec(&self, name: &str, template: TemplateUse) -> VmSpec {
        let run_dir = self.folder.path().join(name);
        fs::create_dir_all(&run_dir).unwrap();
        let scratch_disk = run_dir.join("scratch.ext4");
        File::create(&scratch_disk).unwrap().set_len(vmm::SCRATCH_DISK_BYTES).unwrap();
        VmSpec {
            name: name.to_owned(),
            kit_dir: kit(),
            template_dir: self.folder.path().join("templates"),
            memory: MemoryMib::new(256).unwrap(),
            vcpus: VcpuCount::new(1).unwrap(),
            driver: DriverChoice::Qemu,
            accel: AccelChoice::Tcg,
            root_disk: self.folder.path().join("image"),
            scratch_disk,
            scratch_is_kept: false,
            network: None,
            template,
            run_dir,
        }
    }

    /// With a disk that has the file system of those that are thrown away.
    pub(crate) fn on_throwaway_disk(&self, spec: VmSpec) -> VmSpec {
        let blank = kit().join("scratch-throwaway.ext4");
        let copied = Command::new("cp").arg("--sparse=always").args([&blank, &spec.scratch_disk]).status();
        assert!(copied.unwrap().success());
        spec
    }

    pub(crate) fn child(&self, name: &str, of: &str) -> VmSpec {
        self.spec(name, TemplateUse::Snapshot { folder: self.snapshot(of), verify: true })
    }

    pub(crate) async fn take(&self, vm: &mut Vm, name: &str) -> Result<SnapshotTaken, CommandError> {
        vm.snapshot(SnapshotRequest {
            folder: self.snapshot(name),
            leave_paused: false,
            purpose: SnapshotPurpose::Keeping,
        })
        .await
    }

    /// Names of what lies among the snapshots.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("snapshots")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

pub(crate) async fn running(spec: &VmSpec) -> (Vm, Guest) {
    running_as(spec, Path::new(III_VM)).await
}

pub(crate) async fn running_as(spec: &VmSpec, program: &Path) -> (Vm, Guest) {
    let (mut vm, channel) = Vm::spawn(spec, program).await.unwrap();
    let guest = Guest::connect(channel).unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, vm.next_event()).await.expect("the VM says something") {
            VmEvent::Running { start, .. } => {
                assert_eq!(start == VmStart::Booted, spec.template == TemplateUse::Never);
                if start == VmStart::Booted {
                    guest.ready().await.unwrap();
                }
                return (vm, guest);
            }
            VmEvent::BuildingTemplate => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn ping(guest: &Guest) {
    tokio::time::timeout(PATIENCE, guest.ping()).await.expect("an answer").unwrap();
}
