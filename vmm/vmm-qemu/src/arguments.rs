//! QEMU's command line.
//!
//! A template and its clones must be the same machine: everything the guest can see is built from [`Shape`]
//! here, and only the host's ends of it differ. A device that is new here goes into `images/qemu/devices.mak` too: our own QEMU
//! has no others.

use std::os::fd::RawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use vmm::Wires;
use vmm_host::{Accel, Kit};

use crate::layers::{Layers, layer};

/// Everything about a machine that its guest can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) accel: Accel,
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u32,
    pub(crate) tsc_khz: u64,
}

impl Shape {
    pub(crate) fn kernel_command_line(&self) -> String {
        // QEMU's translations are found by address: with every program at addresses of its own, a guest's `true`
        // takes 12 ms instead of 2. Hardware has no such cost.
        let layout = if self.accel == Accel::Tcg { " norandmaps" } else { "" };
        // Without expedited grace periods the first two programs of a guest wait 50 ms for their control group. A kernel with
        // EFI restarts by EFI where ACPI is hardware-reduced; there is none here, and it would go on in the firmware, where
        // nobody hears of it: a restored machine would stand there for ever.
        format!(
            "console=ttyS0 quiet panic=-1 reboot=acpi tsc_early_khz={} tsc=reliable rcupdate.rcu_expedited=1{layout}",
            self.tsc_khz
        )
    }
}

/// The host's ends of a machine.
#[derive(Debug)]
pub(crate) struct HostEnds<'a> {
    pub(crate) name: &'a str,
    pub(crate) root_disk: &'a Path,
    pub(crate) scratch: &'a Layers,
    pub(crate) scratch_is_kept: bool,
    pub(crate) guest_fd: RawFd,
    pub(crate) net_fd: RawFd,
    pub(crate) monitor_fd: RawFd,
}

/// Where the machine's first instruction comes from.
#[derive(Debug)]
pub(crate) enum Start<'a> {
    /// The kernel, with anonymous memory.
    Boot(&'a Kit),
    /// The kernel, with its memory in a file that others will map.
    BootIntoFile(&'a Kit, &'a Path),
    /// A template: `memory` is mapped privately, the rest comes over the monitor.
    Restore { memory: &'a Path },
    /// A snapshot, likewise. Its state was written without the section that tells of the machine's configuration.
    RestoreSnapshot { memory: &'a Path },
}

/// The whole command line, without the program.
pub(crate) fn arguments(shape: &Shape, ends: &HostEnds<'_>, start: &Start<'_>) -> Vec<String> {
    // No PIT and no PIC: the guest keeps time with its local APIC and the TSC, and a PIT that nobody stops wakes this process
    // 36 times a second.
    let mut machine = "microvm,x-option-roms=off,rtc=on,pit=off,pic=off,acpi=on".to_owned();
    let (accel, cpu) = match shape.accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg,thread=multi", "max"),
    };
    let mut list: Vec<String> = Vec::with_capacity(64);
    let memory_file = match start {
        Start::Boot(_) => None,
        Start::BootIntoFile(_, path) => Some((*path, true)),
        Start::Restore { memory } | Start::RestoreSnapshot { memory } => Some((*memory, false)),
    };
    if let Some((path, share)) = memory_file {
        machine.push_str(",memory-backend=mem");
        let size = u64::from(shape.memory_mib) * 1024 * 1024;
        let object =
            json!({"qom-type": "memory-backend-file", "id": "mem", "size": size, "mem-path": path, "share": share});
        add(&mut list, &["-object", &object.to_string()]);
    }
    add(&mut list, &["-name", &format!("iii-{}", plain(ends.name))]);
    add(&mut list, &["-M", &machine, "-accel", accel, "-cpu", cpu]);
    add(&mut list, &["-m", &format!("{}M", shape.memory_mib), "-smp", &shape.vcpus.to_string()]);
    add(&mut list, &["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&mut list, &["-global", "virtio-mmio.force-legacy=off"]);
    add(&mut list, &["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // A pipe to us: the console never reaches the disk without going through a limit.
    add(&mut list, &["-serial", "stdio"]);
    add(&mut list, &["-chardev", &format!("socket,id=monitor,fd={}", ends.monitor_fd)]);
    add(&mut list, &["-mon", "chardev=monitor,mode=control"]);
    // Port 0 is the console's, port 1 ours; each more would be two more queues.
    add(&mut list, &["-device", "virtio-serial-device,max_ports=2"]);
    add(&mut list, &["-chardev", &format!("socket,id=guest,fd={}", ends.guest_fd)]);
    add(&mut list, &["-device", &format!("virtserialport,chardev=guest,name={}", Wires::PORT_NAME)]);
    let root = layer("raw", Some("root"), ends.root_disk, true, ends.scratch_is_kept);
    for (node, disk) in [("root", root), ("scratch", ends.scratch.node(ends.scratch_is_kept))] {
        // A full disk on the host stops the machine: an error would end the guest's file system. See `full_disk.rs`.
        let device = format!("virtio-blk-device,drive={node},werror=enospc,rerror=report");
        add(&mut list, &["-blockdev", &disk.to_string(), "-device", &device]);
    }
    add(&mut list, &["-netdev", &format!("stream,id=net,server=off,addr.type=fd,addr.str={}", ends.net_fd)]);
    // No announcement after a restore: there is no switch that would have to learn of it, and the guest would be woken.
    add(&mut list, &["-device", &format!("virtio-net-device,netdev=net,guest_announce=off,mac={}", mac())]);
    match start {
        Start::Boot(kit) | Start::BootIntoFile(kit, _) => {
            add(&mut list, &["-kernel", &kit.kernel.to_string_lossy(), "-initrd", &kit.initramfs.to_string_lossy()]);
            add(&mut list, &["-append", &shape.kernel_command_line()]);
        }
        // The kernel is in the memory already; not loading it again saves a third of the restore.
        Start::Restore { .. } => add(&mut list, &["-incoming", "defer"]),
        Start::RestoreSnapshot { .. } => {
            add(&mut list, &["-incoming", "defer", "-global", "migration.send-configuration=off"]);
        }
    }
    list
}

fn mac() -> String {
    Wires::BOOT_MAC.map(|byte| format!("{byte:02x}")).join(":")
}

fn add(list: &mut Vec<String>, arguments: &[&str]) {
    list.extend(arguments.iter().map(|argument| (*argument).to_owned()));
}

/// A name that means nothing in QEMU's option syntax.
fn plain(name: &str) -> String {
    name.chars()
        .take(64)
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accel: Accel) -> Shape {
        Shape { accel, memory_mib: 256, vcpus: 2, tsc_khz: 2_596_154 }
    }

    fn list(accel: Accel, name: &str) -> Vec<String> {
        let ends = HostEnds {
            name,
            root_disk: Path::new("/images/a,b.erofs"),
            scratch: &Layers::raw(Path::new("/run/s.ext4")),
            scratch_is_kept: true,
            guest_fd: 7,
            net_fd: 8,
            monitor_fd: 9,
        };
        arguments(&shape(accel), &ends, &Start::Restore { memory: Path::new("/t/memory") })
    }

    fn after<'a>(list: &'a [String], flag: &str) -> Vec<&'a str> {
        list.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn a_clone_is_the_machine_of_its_template_without_a_kernel() {
        let restore = list(Accel::Tcg, "a");
        assert_eq!(after(&restore, "-incoming"), ["defer"]);
        assert!(after(&restore, "-kernel").is_empty());
        assert!(after(&restore, "-object")[0].contains(r#""share":false"#));
        assert!(after(&restore, "-M")[0].ends_with(",memory-backend=mem"));
        assert_eq!(after(&restore, "-m"), ["256M"]);
        assert_eq!(after(&restore, "-smp"), ["2"]);
    }

    #[test]
    fn acceleration_chooses_the_processor() {
        assert_eq!(after(&list(Accel::Kvm, "a"), "-cpu"), ["host"]);
        assert_eq!(after(&list(Accel::Tcg, "a"), "-cpu"), ["max"]);
    }

    #[test]
    fn names_and_paths_cannot_add_options() {
        let list = list(Accel::Tcg, "a,debug-threads=on");
        assert_eq!(after(&list, "-name"), ["iii-a_debug-threads_on"]);
        let root: serde_json::Value = serde_json::from_str(after(&list, "-blockdev")[0]).unwrap();
        assert_eq!(root["file"]["filename"], "/images/a,b.erofs");
        assert_eq!(root["read-only"], true);
    }

    #[test]
    fn addresses_are_random_where_that_costs_nothing() {
        assert!(shape(Accel::Tcg).kernel_command_line().contains("norandmaps"));
        assert!(!shape(Accel::Kvm).kernel_command_line().contains("norandmaps"));
    }

    #[test]
    fn a_restart_of_the_guest_is_a_reset_that_qemu_sees() {
        assert!(shape(Accel::Tcg).kernel_command_line().contains(" reboot=acpi "));
    }

    #[test]
    fn the_kernel_is_told_the_clock_frequency() {
        assert!(shape(Accel::Tcg).kernel_command_line().contains("tsc_early_khz=2596154"));
    }
}
