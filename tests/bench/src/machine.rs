//! A VM without engine and daemon: `iii-vm`, its guest, and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_client::{Guest, Output};
use guest_protocol::{Disk, ExecFile, ExecRequest, Identity, Network};
use tempfile::TempDir;
use vmm::{
    AccelChoice, DriverChoice, Egress, GatewayPort, HostTarget, MemoryMib, NetworkSpec, TemplateUse, VcpuCount, Vm,
    VmEvent, VmSpec,
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
const GUEST_MAC: &str = "02:6d:73:00:00:02";
const GATEWAY_MAC: &str = "02:6d:73:00:00:01";
const PATIENCE: Duration = Duration::from_secs(120);

/// What to boot, and how.
pub(crate) struct Recipe<'a> {
    pub(crate) kit: &'a Path,
    /// `None`: a blank disk, for guests that are only pinged.
    pub(crate) root: Option<&'a Path>,
    pub(crate) folder: &'a Path,
    pub(crate) clone: bool,
    /// A port of the host's loopback that the guest reaches as the gateway's.
    pub(crate) port: Option<u16>,
}

/// A running VM; killed when dropped.
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    _vm: Vm,
    run: TempDir,
}

/// The programs under test.
pub(crate) fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("III_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().expect("a path of this program");
        own.parent().expect("a folder").to_owned()
    });
    folder.join(name)
}

/// Boots until the guest answers a ping, and says how long that took.
pub(crate) async fn boot(recipe: &Recipe<'_>) -> (Machine, Duration) {
    let run = TempDir::new_in(recipe.folder).expect("a run folder");
    let blank = |name: &str, length| {
        let path = run.path().join(name);
        File::create(&path).and_then(|file| file.set_len(length)).expect("a blank disk");
        path
    };
    let scratch = match recipe.root {
        None => blank("scratch", vmm::SCRATCH_DISK_BYTES),
        Some(_) => {
            let path = run.path().join("scratch");
            let copied = std::process::Command::new("cp")
                .args(["--sparse=always"])
                .arg(recipe.kit.join("scratch-throwaway.ext4"))
                .arg(&path)
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "the kit's scratch disk is copied");
            path
        }
    };
    let network = recipe.port.map(|port| NetworkSpec {
        guest_mac: GUEST_MAC.into(),
        guest_address: GUEST,
        gateway_mac: GATEWAY_MAC.into(),
        gateway_address: GATEWAY,
        egress: Egress {
            gateway: vec![GatewayPort { port, target: HostTarget::Loopback(port) }],
            private: false,
            public: false,
        },
    });
    let spec = VmSpec {
        name: "bench".into(),
        run_dir: run.path().to_owned(),
        kit_dir: recipe.kit.to_owned(),
        template_dir: recipe.folder.join("templates"),
        memory: MemoryMib::new(512).expect("a size"),
        vcpus: VcpuCount::new(1).expect("a count"),
        driver: DriverChoice::Auto,
        accel: AccelChoice::Auto,
        root_disk: recipe.root.map_or_else(|| blank("root", vmm::ROOT_DISK_BYTES), Path::to_owned),
        scratch_disk: scratch,
        scratch_is_kept: false,
        network,
        template: if recipe.clone { TemplateUse::Clone } else { TemplateUse::Never },
    };
    let start = Instant::now();
    let (mut vm, channel) = Vm::spawn(&spec, &program("iii-vm")).await.expect("iii-vm starts");
    let restored = loop {
        match tokio::time::timeout(PATIENCE, vm.next_event()).await.expect("the VM says something") {
            VmEvent::Running { start, .. } => break !start.is_boot(),
            VmEvent::Exited(exit) => panic!("the VM ended: {exit:?}"),
            _ => {}
        }
    };
    assert_eq!(restored, recipe.clone, "clone or cold boot, as asked");
    let guest = Guest::connect(channel).expect("the guest's channel");
    if !restored {
        guest.ready().await.expect("the guest's hello");
    }
    guest.ping().await.expect("an answer");
    let elapsed = start.elapsed();
    (Machine { guest, _vm: vm, run }, elapsed)
}

impl Machine {
    /// Ends the VM; its files are there until the folder is dropped.
    pub(crate) fn end(self) -> TempDir {
        let Self { run, .. } = self;
        run
    }

    /// Gives the guest an identity, its disks and its network.
    pub(crate) async fn adopt(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time");
        let identity = Identity {
            entropy: vec![7; 64],
            unix_time_ns: u64::try_from(now.as_nanos()).expect("a time"),
            hostname: "bench".into(),
            machine_id: "0".repeat(32),
            network: Some(Network {
                mac: GUEST_MAC.into(),
                address: GUEST,
                prefix_len: 30,
                gateway: GATEWAY,
                dns: GATEWAY,
                mtu: 1500,
                hosts: BTreeMap::new(),
            }),
            root: Disk { device: "/dev/vda".into(), filesystem: "erofs".into() },
            scratch: Some(Disk { device: "/dev/vdb".into(), filesystem: "ext4".into() }),
            scratch_is_kept: false,
            ca_bundle_pem: None,
            env: [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into(),
            workdir: "/".into(),
            user: String::new(),
            memory_limit_bytes: None,
            open_files: 1024,
        };
        self.guest.adopt(identity).await.expect("adopted");
    }

    /// Runs a Python script to its end.
    pub(crate) async fn python(&self, script: &str, arguments: &[String]) {
        let file = ExecFile { path: "/tmp/bench.py".into(), mode: 0o644, content: script.to_owned() };
        let argv = ["python3".to_owned(), file.path.clone()].into_iter().chain(arguments.iter().cloned()).collect();
        let request = ExecRequest { argv, files: vec![file], ..ExecRequest::default() };
        let mut running = self.guest.exec(request).await.expect("python3 starts");
        let mut stderr = Vec::new();
        loop {
            match running.next().await.expect("the guest lives") {
                Output::Stdout(_) => {}
                Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Output::Exited { code, .. } => {
                    assert_eq!(code, 0, "the script failed: {}", String::from_utf8_lossy(&stderr));
                    return;
                }
            }
        }
    }
}

/// The installed kit.
pub(crate) fn kit() -> PathBuf {
    test_rig::shared_home().join("lib/kit").canonicalize().expect("the kit (make kit)")
}

/// One with Debian's kernel and without our QEMU; otherwise says what is not measured.
pub(crate) fn debian_kit(what: &str) -> Option<PathBuf> {
    let kit = std::env::var_os("III_BENCH_DEBIAN_KIT").map(PathBuf::from);
    if kit.is_none() {
        eprintln!(
            "not measured: {what} with Debian's kernel and QEMU (III_BENCH_DEBIAN_KIT names no kit; `make bench` makes one)"
        );
    }
    kit
}

/// The installed python image as an EROFS file.
pub(crate) async fn python_root(folder: &Path) -> PathBuf {
    let layout = test_rig::shared_home().join("lib/images/python").canonicalize().expect("the image (make images)");
    let options = oci::StoreOptions { image_bytes: vmm::ROOT_DISK_BYTES, registry: oci::RegistryOptions::default() };
    let store = oci::Store::open(&folder.join("images"), options).expect("an image store");
    let image = oci::ImageRef::parse(&format!("oci:{}:latest", layout.display())).expect("a reference");
    store.ensure(&image, oci::Refresh::IfMissing, &|_| ()).await.expect("the python image").path
}

/// A folder on the same file system as the home, for what a bench makes.
pub(crate) fn folder() -> TempDir {
    let base = test_rig::shared_home().join("bench");
    fs::create_dir_all(&base).expect("a folder for benches");
    TempDir::new_in(base).expect("a folder")
}
