//! Descriptors that arrive by number.
#![expect(unsafe_code, reason = "descriptors that the parent hands over by number")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that the parent has left open for this process.
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the parent names each descriptor once, and nothing else in this new process knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
