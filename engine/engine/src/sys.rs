//! What a child does between fork and exec.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::io;
use std::os::fd::RawFd;

/// Makes a child die with us, and keeps the read end of its lifeline open across exec.
///
/// `PR_SET_PDEATHSIG` follows the thread that forks; the lifeline covers the case that this thread ends first.
pub(crate) fn tie_to_parent(command: &mut tokio::process::Command, lifeline: RawFd) {
    // SAFETY: the closure runs in the forked child and makes two system calls; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(lifeline, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
