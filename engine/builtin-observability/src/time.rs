//! Milliseconds, as callers count, and nanoseconds since 1970, as telemetry does.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOS_PER_MILLI: u64 = 1_000_000;

pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A time beyond the year 2554.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} ms is too large a time")]
pub(crate) struct Overflow(u64);

pub(crate) fn millis_to_nanos(millis: u64) -> Result<u64, Overflow> {
    millis.checked_mul(NANOS_PER_MILLI).ok_or(Overflow(millis))
}

pub(crate) fn nanos_to_millis(nanos: u64) -> u64 {
    nanos / NANOS_PER_MILLI
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
