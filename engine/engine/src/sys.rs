//! What is asked of the kernel: how a child begins, and how many files we may hold.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

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
