//! The one instruction that needs unsafe code.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "rdtsc"))]

/// The processor's time-stamp counter; 0 where there is none, which is where this driver is not taken.
pub(crate) fn time_stamp_counter() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    0
}
