//! What a template depends on, and so what it is called; a snapshot depends on the same.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vmm_host::{Accel, Kit, KitIdentity, cpu_model, kernel_release};

use crate::arguments::{HostEnds, Shape, Start, arguments};
use crate::error::{QemuError, at};
use crate::layers::Layers;

/// Changes whenever the meaning of a template's files changes.
const FORMAT: u32 = 1;

/// Everything that must be equal for a saved machine to run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    format: u32,
    /// The program file stands for its version: asking it would cost a process.
    qemu: (PathBuf, u64, i64, i64),
    kit: KitIdentity,
    pub(crate) shape: Shape,
    arguments: Vec<String>,
    cpu_model: String,
    pub(crate) disks: (u64, u64),
    /// Whether the template's guest has the kit's throwaway disk mounted. Not compared for a snapshot, which brings its own
    /// disk and may be older than this field.
    #[serde(default)]
    pub(crate) scratch_mounted: bool,
    /// With KVM only: an emulated processor is QEMU's alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<KvmHost>,
}

/// What a guest on the host's own processor was saved with: registers that another kernel or microcode does not offer,
/// or offers otherwise, cannot be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KvmHost {
    kernel: String,
    /// The lines about features and microcode, once each.
    processors: BTreeSet<String>,
}

impl KvmHost {
    fn new(kernel: String, cpuinfo: &str) -> Self {
        let tells = |line: &&str| line.starts_with("flags") || line.starts_with("microcode");
        Self { kernel, processors: cpuinfo.lines().filter(tells).map(str::to_owned).collect() }
    }

    fn this() -> Self {
        Self::new(kernel_release(), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }
}

impl Key {
    pub(crate) fn new(program: &Path, kit: &Kit, shape: &Shape, scratch_is_kept: bool) -> Result<Self, QemuError> {
        // By its own name: homes that share a kit by links share its templates.
        let qemu = fs::canonicalize(program).map_err(at(program))?;
        let file = fs::metadata(&qemu).map_err(at(program))?;
        // The guest-visible command line, with names in place of everything that differs between clones.
        let ends = HostEnds {
            name: "",
            root_disk: Path::new("root"),
            scratch: &Layers::raw(Path::new("scratch")),
            // For the host's caching only; what the guest has of it is `scratch_mounted`.
            scratch_is_kept: false,
            guest_fd: 0,
            net_fd: 0,
            monitor_fd: 0,
        };
        let mut arguments = arguments(shape, &ends, &Start::Restore { memory: Path::new("memory") });
        arguments.push(shape.kernel_command_line());
        Ok(Self {
            format: FORMAT,
            qemu: (qemu, file.len(), file.mtime(), file.mtime_nsec()),
            kit: kit.identity.clone(),
            shape: shape.clone(),
            arguments,
            cpu_model: cpu_model(),
            disks: (vmm::ROOT_DISK_BYTES, vmm::SCRATCH_DISK_BYTES),
            scratch_mounted: !scratch_is_kept && kit.throwaway.is_some(),
            host: (shape.accel == Accel::Kvm).then(KvmHost::this),
        })
    }

    /// What is not as it was when a machine was saved, in words; nothing when it can run again. `saved` is a key as
    /// it was written down.
    pub(crate) fn differences(&self, saved: &Value) -> Vec<&'static str> {
        let Ok(saved) = serde_json::from_value::<Self>(saved.clone()) else { return vec!["the format"] };
        let (ours, theirs) = (&self.shape, &saved.shape);
        let host = |key: &Self| key.host.clone().map(|host| (host.kernel, host.processors)).unzip();
        let ((kernel, processors), (saved_kernel, saved_processors)) = (host(self), host(&saved));
        let plain = [
            (self.format != saved.format, "the format"),
            (self.qemu != saved.qemu, "QEMU"),
            (ours.accel != theirs.accel, "the acceleration"),
            (ours.memory_mib != theirs.memory_mib, "the memory"),
            (ours.vcpus != theirs.vcpus, "the number of processors"),
            (ours.tsc_khz != theirs.tsc_khz, "the frequency of the processor's clock"),
            (self.cpu_model != saved.cpu_model, "the processor's model"),
            (self.disks != saved.disks, "the size of the disks"),
            (kernel != saved_kernel, "the host's kernel"),
            (processors != saved_processors, "the processor's features or microcode"),
        ];
        let plain = plain.into_iter().filter_map(|(differs, what)| differs.then_some(what));
        let mut found: Vec<&str> = plain.chain(self.kit.differences(&saved.kit)).collect();
        // They repeat much of the above; by themselves they differ only when this program has changed.
        if found.is_empty() && self.arguments != saved.arguments {
            found.push("the machine that iii-vm describes to QEMU");
        }
        found
    }

    /// The folder's name.
    pub(crate) fn name(&self) -> Result<String, QemuError> {
        let text = serde_json::to_vec(self).map_err(|error| at("template.json")(error.into()))?;
        Ok(hex(&Sha256::digest(text))[..32].to_owned())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(folder: &Path, kernel: &str) -> Kit {
        let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
        image.resize(2 << 20, 0);
        let about = format!(r#"{{"kernel_sha256":"{kernel}","initramfs_sha256":"b","flavour":"iii"}}"#);
        for (name, content) in [("kernel", image), ("initramfs", b"i".to_vec()), ("kit.json", about.into_bytes())] {
            fs::write(folder.join(name), content).unwrap();
        }
        Kit::open(folder).unwrap()
    }

    fn key(kernel: &str, tsc_khz: u64, vcpus: u32) -> String {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { accel: Accel::Tcg, memory_mib: 256, vcpus, tsc_khz };
        Key::new(Path::new("/proc/self/exe"), &kit(folder.path(), kernel), &shape, false).unwrap().name().unwrap()
    }

    #[test]
    fn a_key_depends_on_everything_the_guest_can_see_and_nothing_else() {
        assert_eq!(key("a", 1, 1), key("a", 1, 1));
        let different = [key("a", 1, 1), key("b", 1, 1), key("a", 2, 1), key("a", 1, 2)];
        assert_eq!(different.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(different[0].len(), 32);
    }

    /// Homes of tests share one kit by links.
    #[test]
    fn one_program_by_two_names_is_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let [program, link] = ["program", "link"].map(|name| folder.path().join(name));
        fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let shape = Shape { accel: Accel::Tcg, memory_mib: 256, vcpus: 1, tsc_khz: 1 };
        let kit = kit(folder.path(), "a");
        let key = |program: &Path| Key::new(program, &kit, &shape, false).unwrap();
        assert_eq!(key(&program), key(&link));
    }

    #[test]
    fn what_has_changed_since_a_machine_was_saved_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { accel: Accel::Kvm, memory_mib: 256, vcpus: 1, tsc_khz: 1 };
        let key = Key::new(Path::new("/proc/self/exe"), &kit(folder.path(), "a"), &shape, false).unwrap();
        let differences = |change: &dyn Fn(&mut Key)| {
            let mut saved = key.clone();
            change(&mut saved);
            key.differences(&serde_json::to_value(&saved).unwrap())
        };
        assert!(differences(&|_| ()).is_empty());
        assert_eq!(differences(&|saved| saved.qemu.1 += 1), ["QEMU"]);
        assert_eq!(differences(&|saved| saved.kit = kit(folder.path(), "b").identity), ["the guest's kernel"]);
        let host = |kernel: &str, cpuinfo| Some(KvmHost::new(kernel.to_owned(), cpuinfo));
        let other = differences(&|saved| saved.host = host("1", "flags: x"));
        assert_eq!(other, ["the host's kernel", "the processor's features or microcode"]);
        assert_eq!(differences(&|saved| saved.arguments.clear()), ["the machine that iii-vm describes to QEMU"]);
        assert_eq!(key.differences(&Value::Null), ["the format"]);
    }

    #[test]
    fn a_guest_on_the_hosts_processor_depends_on_its_kernel_features_and_microcode() {
        let folder = tempfile::tempdir().unwrap();
        let key = |accel, host: Option<KvmHost>| {
            let shape = Shape { accel, memory_mib: 256, vcpus: 1, tsc_khz: 1 };
            let mut key = Key::new(Path::new("/proc/self/exe"), &kit(folder.path(), "a"), &shape, false).unwrap();
            assert_eq!(key.host.is_some(), accel == Accel::Kvm);
            key.host = host.or(key.host);
            key.name().unwrap()
        };
        let host = |kernel: &str, flags, microcode, mhz| {
            let one = format!("flags\t\t: {flags}\nmicrocode\t: {microcode}\ncpu MHz\t\t: {mhz}\n");
            Some(KvmHost::new(kernel.to_owned(), &format!("{one}\n{one}")))
        };
        let kvm = |host| key(Accel::Kvm, host);
        assert_eq!(kvm(host("6.1", "fpu", "0x1", "800")), kvm(host("6.1", "fpu", "0x1", "3600")));
        let different = [
            key(Accel::Tcg, None),
            kvm(None),
            kvm(host("6.1", "fpu", "0x1", "800")),
            kvm(host("6.2", "fpu", "0x1", "800")),
            kvm(host("6.1", "fpu avx", "0x1", "800")),
            kvm(host("6.1", "fpu", "0x2", "800")),
        ];
        assert_eq!(different.iter().collect::<BTreeSet<_>>().len(), different.len());
    }
}
