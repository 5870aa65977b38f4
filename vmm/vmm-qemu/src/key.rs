//! What a template depends on, and so what it is called.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmm_host::{Accel, Kit, KitIdentity, cpu_model, kernel_release};

use crate::arguments::{HostEnds, Shape, Start, arguments};
use crate::error::{QemuError, at};

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
    pub(crate) fn new(program: &Path, kit: &Kit, shape: &Shape) -> Result<Self, QemuError> {
        let file = fs::metadata(program).map_err(at(program))?;
        // The guest-visible command line, with names in place of everything that differs between clones.
        let ends = HostEnds {
            name: "",
            root_disk: Path::new("root"),
            scratch_disk: Path::new("scratch"),
            scratch_is_kept: false,
            guest_fd: 0,
            net_fd: 0,
            monitor_fd: 0,
        };
        let mut arguments = arguments(shape, &ends, &Start::Restore { memory: Path::new("memory") });
        arguments.push(shape.kernel_command_line());
        Ok(Self {
            format: FORMAT,
            qemu: (program.to_owned(), file.len(), file.mtime(), file.mtime_nsec()),
            kit: kit.identity.clone(),
            shape: shape.clone(),
            arguments,
            cpu_model: cpu_model(),
            disks: (vmm::ROOT_DISK_BYTES, vmm::SCRATCH_DISK_BYTES),
            host: (shape.accel == Accel::Kvm).then(KvmHost::this),
        })
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
        Key::new(Path::new("/proc/self/exe"), &kit(folder.path(), kernel), &shape).unwrap().name().unwrap()
    }

    #[test]
    fn a_key_depends_on_everything_the_guest_can_see_and_nothing_else() {
        assert_eq!(key("a", 1, 1), key("a", 1, 1));
        let different = [key("a", 1, 1), key("b", 1, 1), key("a", 2, 1), key("a", 1, 2)];
        assert_eq!(different.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(different[0].len(), 32);
    }

    #[test]
    fn a_guest_on_the_hosts_processor_depends_on_its_kernel_features_and_microcode() {
        let folder = tempfile::tempdir().unwrap();
        let key = |accel, host: Option<KvmHost>| {
            let shape = Shape { accel, memory_mib: 256, vcpus: 1, tsc_khz: 1 };
            let mut key = Key::new(Path::new("/proc/self/exe"), &kit(folder.path(), "a"), &shape).unwrap();
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
