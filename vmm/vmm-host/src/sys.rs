//! The child's side of a fork, and processes of others: unsafe code.
#![expect(unsafe_code, reason = "pre_exec between fork and exec; system calls without a safe form")]

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::process::Manner;

/// Lets the child keep `inherited`, and on Linux has the kernel kill it when the spawning thread ends. It leaves no core
/// dump: a guest that crashes it could fill the disk, and its memory is a tenant's.
/// The caller keeps the descriptors open until the child was spawned.
pub(crate) fn prepare_child(command: &mut Command, inherited: Vec<RawFd>, manner: Manner) {
    let parent = std::process::id();
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the closure makes system calls only (async-signal-safe) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let failed = libc::setrlimit(libc::RLIMIT_CORE, &no_core) != 0
                || inherited.iter().any(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) < 0)
                || linux_only(manner) != 0;
            if failed {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died already.
            if u32::try_from(libc::getppid()).ok() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// In the child: its memory as asked for, and its end with its parent. Answers like a system call.
#[cfg(target_os = "linux")]
fn linux_only(manner: Manner) -> libc::c_int {
    // SAFETY: both take numbers only.
    unsafe {
        if !manner.huge_pages {
            // It costs memory, no more, where the kernel does not know the call.
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        }
        if manner.own_group {
            libc::setpgid(0, 0);
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    }
}

/// Nothing of the kind exists there.
#[cfg(not(target_os = "linux"))]
fn linux_only(_manner: Manner) -> libc::c_int {
    0
}

/// A descriptor of a process that is there, and of no other later. It is readable when the process has ended.
#[cfg(target_os = "linux")]
pub(crate) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;

    // SAFETY: takes numbers only.
    let found = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(found) {
        // SAFETY: the kernel has just made it, for us alone; it is closed in programs that we start.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills it, if it still runs.
#[cfg(target_os = "linux")]
pub(crate) fn kill_process(process: &OwnedFd) {
    use std::os::fd::AsRawFd;

    let no_information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes numbers, and a pointer that may be null.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_information, 0);
    }
}

/// No process is forked for us there.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open_process(_pid: u32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn kill_process(_process: &OwnedFd) {}
