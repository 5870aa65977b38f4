//! What is asked of the kernel and the C library: how a child begins, how many files and how much freed memory we may hold.
#![expect(unsafe_code, reason = "pre_exec and mallopt have no safe form")]

use std::io;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Each worker and each end of a channel is an open file; the usual soft limit of 1024 is there for programs that use
/// `select`. Our children are to have the raised one as well.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "could not raise the number of open files");
    }
}

/// Messages of a megabyte come and go hundreds of times a second: as they are shipped, allocators give such memory back to the
/// kernel each time, and have every page of it cleared again.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 4 << 20), (libc::M_TRIM_THRESHOLD, 32 << 20)] {
        // SAFETY: sets a number under the allocator's own lock; refused values change nothing.
        if unsafe { libc::mallopt(parameter, bytes) } == 0 {
            warn!(parameter, bytes, "could not set up the allocator");
        }
    }
}

/// Keeps the read end of a child's lifeline open across exec: its end of file tells the child that we are gone.
pub(crate) fn keep_lifeline_open(command: &mut tokio::process::Command, lifeline: RawFd) {
    // SAFETY: the closure runs in the forked child and makes one system call; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(lifeline, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_user_may_have() {
        raise_open_files();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(soft, hard);
    }
}
