//! The guest's root file system: the image, a writable layer over it, and the kernel's own file systems in it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use guest_protocol::{Disk, GuestFailure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::sys;
use crate::wire::io_failure;

/// Mounts `root` read-only, `scratch` over it, and moves this process, and so every later one, into the result.
pub(crate) fn enter(root: &Disk, scratch: Option<&Disk>) -> Result<(), GuestFailure> {
    for folder in ["/lower", "/scratch", "/root.new"] {
        fs::create_dir_all(folder).map_err(|error| io_failure(format!("create {folder}"), &error))?;
    }
    mount_disk(root, "/lower", MsFlags::MS_RDONLY, None)?;
    match scratch {
        Some(disk) => mount_disk(disk, "/scratch", MsFlags::MS_NOATIME, Some("noinit_itable"))?,
        None => step("mount the writable layer", || {
            Ok(mount(Some("scratch"), "/scratch", Some("tmpfs"), MsFlags::empty(), Some("size=50%,mode=755"))?)
        })?,
    }
    for folder in ["/scratch/upper", "/scratch/work"] {
        fs::create_dir_all(folder).map_err(|error| io_failure(format!("create {folder}"), &error))?;
    }
    step("mount the overlay", || {
        // With redirects, a directory of the image can be renamed; without, that is a copy of all that is in it.
        let layers = "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=on";
        Ok(mount(Some("root"), "/root.new", Some("overlay"), MsFlags::empty(), Some(layers))?)
    })?;
    for folder in ["dev", "proc", "sys"] {
        step(&format!("move /{folder}"), || {
            let target = Path::new("/root.new").join(folder);
            fs::create_dir_all(&target)?;
            let from = Path::new("/").join(folder);
            Ok(mount(Some(&from), &target, None::<&str>, MsFlags::MS_MOVE, None::<&str>)?)
        })?;
    }
    step("enter the root", || {
        chdir("/root.new")?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        chroot(".")?;
        Ok(chdir("/")?)
    })
}

fn step(what: &str, act: impl FnOnce() -> io::Result<()>) -> Result<(), GuestFailure> {
    act().map_err(|error| io_failure(what, &error))
}

fn mount_disk(disk: &Disk, target: &str, flags: MsFlags, options: Option<&str>) -> Result<(), GuestFailure> {
    let what = format!("mount {} ({}) on {target}", disk.device, disk.filesystem);
    step(&what, || {
        sys::forget_cached_blocks(&disk.device)?;
        Ok(mount(Some(disk.device.as_str()), target, Some(disk.filesystem.as_str()), flags, options)?)
    })
}

/// What programs expect to find mounted, in the new root.
pub(crate) fn furnish() -> io::Result<()> {
    for (source, target, kind, options) in [
        ("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666"),
        ("shm", "/dev/shm", "tmpfs", "mode=1777"),
        ("run", "/run", "tmpfs", "mode=755"),
        ("cgroup", "/sys/fs/cgroup", "cgroup2", ""),
    ] {
        fs::create_dir_all(target)?;
        let options = (!options.is_empty()).then_some(options);
        match mount(Some(source), target, Some(kind), MsFlags::MS_NOSUID, options) {
            // A kernel without cgroups runs programs without limits.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(_) if kind == "cgroup2" => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(target, Path::new("/dev").join(link));
    }
    fs::create_dir_all("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))
}

/// The group that every program joins, and its limit: a program that takes all memory must not take init along.
pub(crate) fn limit_memory(bytes: Option<u64>) -> io::Result<()> {
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => {
            let info = fs::read_to_string("/proc/meminfo")?;
            let kib: u64 = info.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
            (kib * 1024 / 4 * 3).max(128 * 1024 * 1024)
        }
    };
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all("/sys/fs/cgroup/worker")?;
    fs::write("/sys/fs/cgroup/worker/memory.max", bytes.to_string())
}
