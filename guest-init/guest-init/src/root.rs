//! The guest's root file system: the image, a writable layer over it, and the kernel's own file systems in it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use guest_protocol::{Disk, GuestFailure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::adopt::step;
use crate::sys;
use crate::wire::io_failure;

/// What is mounted before anybody knows which root this guest will have, and moves into it.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// The group that every program is born in: a program that takes all memory must not take init along.
pub(crate) const GROUP: &str = "/sys/fs/cgroup/worker";

/// Mounts what no identity changes, so that a template has it and no clone runs the code for it again. A part that fails
/// is told to `report`, and is missing: a kernel without cgroups runs programs without limits.
pub(crate) fn prepare(report: impl Fn(&str, io::Result<()>)) {
    for folder in ["/lower", "/scratch", "/root.new"] {
        report(&format!("create {folder}"), fs::create_dir_all(folder));
    }
    for (source, target, kind, options) in [
        ("devpts", "/dev/pts", "devpts", Some("mode=620,ptmxmode=666")),
        ("shm", "/dev/shm", "tmpfs", Some("mode=1777")),
        ("run", "/run", "tmpfs", Some("mode=755")),
        ("cgroup", "/sys/fs/cgroup", "cgroup2", None),
    ] {
        let _ = fs::create_dir_all(target);
        match mount(Some(source), target, Some(kind), MsFlags::MS_NOSUID, options) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => report(&format!("mount {target}"), Err(error.into())),
        }
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(target, Path::new("/dev").join(link));
    }
    report("limit the memory", limit_by_default());
}

/// Three quarters of the memory: what a guest has until it is told a limit of its own.
fn limit_by_default() -> io::Result<()> {
    let bytes = nix::sys::sysinfo::sysinfo()?.ram_total();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(GROUP)?;
    limit_memory((bytes / 4 * 3).max(128 * 1024 * 1024))
}

pub(crate) fn limit_memory(bytes: u64) -> io::Result<()> {
    fs::write(Path::new(GROUP).join("memory.max"), bytes.to_string())
}

/// Mounts `root` read-only, `scratch` over it, and moves this process, and so every later one, into the result.
pub(crate) fn enter(root: &Disk, scratch: Option<&Disk>) -> Result<(), GuestFailure> {
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
    for folder in MOVED {
        step(&format!("move /{folder}"), || {
            let target = Path::new("/root.new").join(folder);
            let from = Path::new("/").join(folder);
            let into_root = || mount(Some(&from), &target, None::<&str>, MsFlags::MS_MOVE, None::<&str>);
            // An image has these folders, unless it was made by others than us.
            if into_root() == Err(Errno::ENOENT) {
                fs::create_dir_all(&target)?;
                into_root()?;
            }
            Ok(())
        })?;
    }
    step("enter the root", || {
        chdir("/root.new")?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        chroot(".")?;
        Ok(chdir("/")?)
    })?;
    step("open /tmp to everybody", open_tmp)
}

/// Most images have it as it should be; to change it nevertheless would be this guest's first write.
fn open_tmp() -> io::Result<()> {
    const MODE: u32 = 0o1777;
    if fs::metadata("/tmp").is_ok_and(|found| found.is_dir() && found.permissions().mode() & 0o7777 == MODE) {
        return Ok(());
    }
    fs::create_dir_all("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(MODE))
}

fn mount_disk(disk: &Disk, target: &str, flags: MsFlags, options: Option<&str>) -> Result<(), GuestFailure> {
    let what = format!("mount {} ({}) on {target}", disk.device, disk.filesystem);
    step(&what, || {
        sys::forget_cached_blocks(&disk.device)?;
        Ok(mount(Some(disk.device.as_str()), target, Some(disk.filesystem.as_str()), flags, options)?)
    })
}
