//! The guest's root file system: the image, a writable layer over it, and the kernel's own file systems in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_protocol::{Disk, ErrorCode, GuestFailure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::adopt::step;
use crate::sys;
use crate::wire::failure;

/// What is mounted before anybody knows which root this guest will have, and moves into it.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// The control group that programs are born in: one that takes all memory must not take init along.
pub(crate) const PROGRAMS_CGROUP: &str = "/sys/fs/cgroup/worker";

/// The writable disk.
const SCRATCH_DEVICE: &str = "/dev/vdb";

/// Label of a disk that is thrown away with its machine; `images/build-kit` sets it. It is `s_volume_name` of `struct
/// ext4_super_block` (the kernel's fs/ext4/ext4.h), which begins at byte 1024 of the disk.
const THROWAWAY_LABEL: &[u8; 16] = b"iii-throwaway\0\0\0";
const LABEL_OFFSET_BYTES: u64 = 1024 + 0x78;

/// No work in the background (ext4(5)): no inode tables initialised, no bitmaps read ahead. Every clone and every child of
/// a snapshot would do it over again.
const SCRATCH_OPTIONS: &str = "noinit_itable,no_prefetch_block_bitmaps";

/// Set by [`prepare`]; part of the memory that a template saves, so a clone finds it set.
static THROWAWAY_MOUNTED: AtomicBool = AtomicBool::new(false);

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
    report("mount the writable disk", mount_throwaway());
}

/// Three quarters of the memory: what a guest has until it is told a limit of its own.
fn limit_by_default() -> io::Result<()> {
    let bytes = nix::sys::sysinfo::sysinfo()?.ram_total();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(PROGRAMS_CGROUP)?;
    limit_memory((bytes / 4 * 3).max(128 * 1024 * 1024))
}

pub(crate) fn limit_memory(bytes: u64) -> io::Result<()> {
    fs::write(Path::new(PROGRAMS_CGROUP).join("memory.max"), bytes.to_string())
}

/// Mounts the writable disk if it is one to throw away: every such disk is a copy of the same, so a template may have it
/// mounted, and its clones need not. What is written here is on the disk when this returns.
fn mount_throwaway() -> io::Result<()> {
    if !is_throwaway()? {
        return Ok(());
    }
    mount(Some(SCRATCH_DEVICE), "/scratch", Some("ext4"), MsFlags::MS_NOATIME, Some(SCRATCH_OPTIONS))?;
    THROWAWAY_MOUNTED.store(true, Ordering::Relaxed);
    create_layers()?;
    nix::unistd::sync();
    Ok(())
}

fn is_throwaway() -> io::Result<bool> {
    let mut label = [0; THROWAWAY_LABEL.len()];
    match File::open(SCRATCH_DEVICE).and_then(|disk| disk.read_exact_at(&mut label, LABEL_OFFSET_BYTES)) {
        Ok(()) => Ok(label == *THROWAWAY_LABEL),
        // A machine without this disk, or with an empty one.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the overlay keeps on the writable disk.
fn create_layers() -> io::Result<()> {
    fs::create_dir_all("/scratch/upper")?;
    fs::create_dir_all("/scratch/work")
}

/// Mounts `root` read-only and lays the writable layer over it: the throwaway disk that [`prepare`] has mounted, else
/// `scratch`, else a tmpfs. Moves this process, and so every later one, into the result. Fails if the disk is to be kept and
/// a throwaway one is mounted: the host gave the wrong one.
pub(crate) fn enter(root: &Disk, scratch: Option<&Disk>, scratch_is_kept: bool) -> Result<(), GuestFailure> {
    mount_disk(root, "/lower", MsFlags::MS_RDONLY, None)?;
    match (scratch, THROWAWAY_MOUNTED.load(Ordering::Relaxed)) {
        (Some(_), true) if !scratch_is_kept => {}
        // To unmount it would write to a disk that is perhaps another one by now.
        (Some(disk), true) => {
            let message = format!("{} is to be kept, but is labelled as one to throw away: clear it", disk.device);
            return Err(failure(ErrorCode::Invalid, message));
        }
        (Some(disk), false) => mount_disk(disk, "/scratch", MsFlags::MS_NOATIME, Some(SCRATCH_OPTIONS))?,
        (None, _) => step("mount the writable layer", || {
            Ok(mount(Some("scratch"), "/scratch", Some("tmpfs"), MsFlags::empty(), Some("size=50%,mode=755"))?)
        })?,
    }
    step("create the layers", create_layers)?;
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
