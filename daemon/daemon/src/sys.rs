//! Descriptors by number, which have no safe form.
#![expect(unsafe_code, reason = "a descriptor handed over by number, and the redirection of standard output")]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

/// Takes the read end of a pipe that the parent left open for us; `None` when the number is no pipe.
pub(crate) fn adopt_pipe(number: i32) -> Option<OwnedFd> {
    // SAFETY: borrowed only for the two questions below, which fail on a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let status = fstat(borrowed).ok()?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFIFO {
        return None;
    }
    // Our own children must not hold it.
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: the parent opened it for this process alone and named it in our environment; nobody else here uses it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends what is printed from now on to a file, or nowhere.
pub(crate) fn redirect_output(path: &Path) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    let Ok(file) = file.or_else(|_| OpenOptions::new().write(true).open("/dev/null")) else { return };
    for number in [1, 2] {
        // SAFETY: both descriptors are open; the old file behind `number` is closed by the call.
        unsafe { libc::dup2(file.as_raw_fd(), number) };
    }
}
