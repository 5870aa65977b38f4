//! The child's side of a fork: the only unsafe code of this crate.
#![expect(unsafe_code, reason = "pre_exec runs between fork and exec")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The descriptor on which `iii-vm` finds the guest channel.
pub(crate) const GUEST_CHANNEL_FD: i32 = 3;

/// Gives the child `channel` as descriptor 3, and on Linux has the kernel kill it when the spawning thread ends; elsewhere
/// its lifeline alone tells it. The returned command owns `channel`; the parent's copy closes when the command is dropped.
pub(crate) fn prepare_child(command: &mut Command, channel: OwnedFd) {
    // SAFETY: the closure makes system calls only (async-signal-safe) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let fd = channel.as_raw_fd();
            let failed = if fd == GUEST_CHANNEL_FD {
                // dup2 onto itself would leave close-on-exec set.
                libc::fcntl(fd, libc::F_SETFD, 0) < 0
            } else {
                libc::dup2(fd, GUEST_CHANNEL_FD) < 0
            };
            if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
