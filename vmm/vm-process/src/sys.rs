//! The one descriptor that arrives by number.
#![expect(unsafe_code, reason = "a descriptor that the caller hands over by number")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{SFlag, fstat};

/// Where the daemon puts the guest channel.
const GUEST_CHANNEL_FD: i32 = 3;

/// The guest channel: a socket on descriptor 3, as a copy that QEMU does not inherit by accident.
/// Descriptor 3 itself is closed.
pub(crate) fn guest_channel() -> io::Result<OwnedFd> {
    // SAFETY: nothing else in this process uses descriptor 3 yet: this is called before anything is opened.
    let borrowed = unsafe { BorrowedFd::borrow_raw(GUEST_CHANNEL_FD) };
    let is_socket =
        fstat(borrowed).is_ok_and(|about| SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK);
    if !is_socket {
        return Err(io::Error::new(io::ErrorKind::NotFound, "descriptor 3 is no socket"));
    }
    let number = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    nix::unistd::close(GUEST_CHANNEL_FD)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}
