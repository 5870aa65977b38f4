//! The one instruction that needs unsafe code.
#![expect(unsafe_code, reason = "rdtsc")]

/// The processor's time-stamp counter.
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}
