//! What a VM is made of: the message from the daemon to `iii-vm`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::choice::{AccelChoice, DriverChoice};

/// Size of the root disk as every guest sees it. A template's kernel remembers the capacity of its disks,
/// so all images are presented with the same one; EROFS does not look at what lies behind its end.
pub const ROOT_DISK_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// Size of the writable disk as every guest sees it; sparse on the host.
pub const SCRATCH_DISK_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// One VM, completely.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Appears in log lines and process listings.
    pub name: String,
    /// Private directory of this VM, mode 0700; description and logs live here.
    pub run_dir: PathBuf,
    /// Folder with `kernel` (ELF with a PVH note) and `initramfs`; see `images/README.md`.
    pub kit_dir: PathBuf,
    /// Where templates are kept, shared by all VMs of a user.
    pub template_dir: PathBuf,
    pub memory: MemoryMib,
    pub vcpus: VcpuCount,
    pub driver: DriverChoice,
    pub accel: AccelChoice,
    /// Read-only EROFS image, exactly [`ROOT_DISK_BYTES`] long (sparse); `/dev/vda` in the guest.
    pub root_disk: PathBuf,
    /// Writable ext4 file, exactly [`SCRATCH_DISK_BYTES`] long (sparse); `/dev/vdb`. Unless it is kept: a fresh copy of the
    /// kit's `scratch-throwaway.ext4`, or blank; a clone's is overwritten with its template's.
    pub scratch_disk: PathBuf,
    /// What a guest syncs to the writable disk is synced on the host. Without, it is lost with the host: for disks that
    /// are thrown away with their VM.
    pub scratch_is_kept: bool,
    /// `None`: the network device exists (a template has one) but nobody answers on it.
    pub network: Option<NetworkSpec>,
    pub template: TemplateUse,
}

/// How a VM comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateUse {
    /// Restored from a template, which is made where there is none; booted where that fails.
    Clone,
    /// Booted.
    Never,
    /// Booted, and the template thrown away: a clone of it did not come up.
    Discard,
    /// Restored from the snapshot in `folder`, or not at all. Memory, processors, acceleration and writable disk are
    /// the snapshot's: what the description says of them is not looked at. `verify` reads the memory to its end first,
    /// which one child of many needs to do; where children are forked there is nothing to verify.
    Snapshot { folder: PathBuf, verify: bool },
}

/// The guest's side of the relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    pub guest_mac: String,
    pub guest_address: Ipv4Addr,
    pub gateway_mac: String,
    pub gateway_address: Ipv4Addr,
    pub egress: Egress,
}

/// Which host sockets a guest may reach.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// What answers on the gateway's ports. Nothing else on the host's loopback is reachable.
    pub gateway: Vec<GatewayPort>,
    /// Addresses of private networks (RFC 1918, RFC 6598).
    pub private: bool,
    /// Everything else that is not loopback, link-local, multicast or unspecified.
    pub public: bool,
}

/// One open port of the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayPort {
    pub port: u16,
    pub target: HostTarget,
}

/// Where a connection to a gateway port ends on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostTarget {
    /// A TCP port on 127.0.0.1.
    Loopback(u16),
    /// A Unix stream socket; `preface` is written first. This is how the engine learns, from us and not
    /// from the guest, which worker's VM is calling.
    Unix { path: PathBuf, preface: String },
}

/// Guest memory in MiB, from [`MemoryMib::MIN`], below which the kernel does not boot, to [`MemoryMib::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a guest has {min} to {max} MiB of memory, not {given}", min = MemoryMib::MIN, max = MemoryMib::MAX)]
pub struct MemoryOutOfRange {
    pub given: u32,
}

impl MemoryMib {
    pub const MIN: u32 = 128;
    pub const MAX: u32 = 1024 * 1024;

    /// # Errors
    /// [`MemoryOutOfRange`] outside [`Self::MIN`]`..=`[`Self::MAX`].
    pub fn new(mib: u32) -> Result<Self, MemoryOutOfRange> {
        if (Self::MIN..=Self::MAX).contains(&mib) { Ok(Self(mib)) } else { Err(MemoryOutOfRange { given: mib }) }
    }

    #[must_use]
    pub fn mib(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = MemoryOutOfRange;
    fn try_from(mib: u32) -> Result<Self, MemoryOutOfRange> {
        Self::new(mib)
    }
}

impl From<MemoryMib> for u32 {
    fn from(memory: MemoryMib) -> u32 {
        memory.0
    }
}

/// Virtual processors, 1 to [`VcpuCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a guest has 1 to {max} virtual processors, not {given}", max = VcpuCount::MAX)]
pub struct VcpuCountInvalid {
    pub given: u32,
}

impl VcpuCount {
    /// What QEMU's `microvm` machine takes.
    pub const MAX: u32 = 64;

    /// # Errors
    /// [`VcpuCountInvalid`] for 0 and above [`Self::MAX`].
    pub fn new(count: u32) -> Result<Self, VcpuCountInvalid> {
        if (1..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(VcpuCountInvalid { given: count }) }
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for VcpuCount {
    type Error = VcpuCountInvalid;
    fn try_from(count: u32) -> Result<Self, VcpuCountInvalid> {
        Self::new(count)
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> u32 {
        count.0
    }
}
