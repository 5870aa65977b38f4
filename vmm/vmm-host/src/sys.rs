//! The child's side of a fork: unsafe code.
#![expect(unsafe_code, reason = "pre_exec between fork and exec")]

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the child keep `inherited`, and on Linux has the kernel kill it when the spawning thread ends. It leaves no core
/// dump: a guest that crashes it could fill the disk, and its memory is a tenant's.
/// The caller keeps the descriptors open until the child was spawned.
pub(crate) fn prepare_child(command: &mut Command, inherited: Vec<RawFd>, huge_pages: bool) {
    let parent = std::process::id();
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the closure makes system calls only (async-signal-safe) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let failed = libc::setrlimit(libc::RLIMIT_CORE, &no_core) != 0
                || inherited.iter().any(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) < 0)
                || linux_only(huge_pages) != 0;
            if failed {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died already.
            if u32::try_from(libc::getppid()).ok() != Some(parent) {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// In the child: its memory as asked for, and its end with its parent. Answers like a system call.
#[cfg(target_os = "linux")]
fn linux_only(huge_pages: bool) -> libc::c_int {
    // SAFETY: both take numbers only.
    unsafe {
        if !huge_pages {
            // It costs memory, no more, where the kernel does not know the call.
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    }
}

/// Nothing of the kind exists there.
#[cfg(not(target_os = "linux"))]
fn linux_only(_huge_pages: bool) -> libc::c_int {
    0
}
