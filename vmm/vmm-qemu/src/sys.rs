//! The unsafe code of this crate: one instruction, and the child's side of a fork.
#![expect(unsafe_code, reason = "rdtsc, and pre_exec between fork and exec")]

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The processor's time-stamp counter.
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Lets the child keep `inherited`, and has the kernel kill it when the spawning thread ends.
/// The caller keeps the descriptors open until the child was spawned.
pub(crate) fn prepare_child(command: &mut Command, inherited: Vec<RawFd>) {
    let parent = std::process::id();
    // SAFETY: the closure makes system calls only (async-signal-safe) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let failed = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || inherited.iter().any(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) < 0);
            if failed {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before the signal was asked for.
            if u32::try_from(libc::getppid()).ok() != Some(parent) {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
