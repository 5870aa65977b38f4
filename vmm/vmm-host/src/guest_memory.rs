//! A probe guest's memory: unsafe code.
#![expect(unsafe_code, reason = "memory shared with a guest")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Zeroed memory for a probe's guest, at guest address 0.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    start: NonNull<c_void>,
    length: usize,
}

impl GuestMemory {
    pub(crate) fn new(length: usize) -> nix::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(nix::errno::Errno::EINVAL)?;
        // SAFETY: a fresh anonymous mapping, at an address that the kernel chooses.
        let start =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)? };
        Ok(Self { start, length })
    }

    /// Writes before the guest runs. Panics outside the memory: the layout is a constant of the caller.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address).unwrap_or(usize::MAX);
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "outside guest memory");
        // SAFETY: the range lies inside the mapping (checked above), which nobody else uses while `self` is
        // borrowed exclusively and no guest runs.
        unsafe {
            self.start.cast::<u8>().add(offset).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        }
    }

    /// Makes it the memory of `vm`. It must live as long as the guest runs, which the caller's frame sees to.
    pub(crate) fn give_to(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: self.length as u64,
            userspace_addr: self.start.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is a mapping of this length; the guest only runs while the caller holds `self`.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this. Should a VM still refer to it, its guest faults; no more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
