//! The host's time-stamp counter frequency, which every guest kernel is told.
//!
//! Without it the kernel calibrates against emulated timers and sometimes hangs; with a wrong one its clock
//! runs at the wrong rate. It is part of a template's key, so it must not wander from one measurement to the next.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Two measurements this close (parts per million) are the same frequency.
const SAME_PPM: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    boot_id: String,
    khz: u64,
}

/// The frequency in kHz: measured once per boot of the host and kept in `folder`.
pub(crate) fn khz(folder: &Path) -> u64 {
    let path = folder.join("tsc.json");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    match read(&path) {
        Some(stored) if stored.boot_id == boot_id => stored.khz,
        _ => measure_once(&path, boot_id),
    }
}

/// VMs that start together must agree, or each would make a template of its own: one measures, the others wait.
fn measure_once(path: &Path, boot_id: String) -> u64 {
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path.with_extension("lock"));
    let _lock = lock.ok().and_then(|file| Flock::lock(file, FlockArg::LockExclusive).ok());
    let stored = read(path);
    if let Some(stored) = &stored
        && stored.boot_id == boot_id
    {
        return stored.khz;
    }
    let khz = settle(measure(), stored.map(|stored| stored.khz));
    // Not being able to remember costs thirty milliseconds next time, and perhaps a template; nothing breaks.
    if let (Ok(text), Some(folder)) = (serde_json::to_vec(&Stored { boot_id, khz }), path.parent())
        && let Ok(mut file) = tempfile::NamedTempFile::new_in(folder)
        && file.write_all(&text).is_ok()
    {
        let _ = file.persist(path);
    }
    khz
}

fn read(path: &Path) -> Option<Stored> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Keeps what an earlier boot measured when it is the same frequency, so that templates survive a reboot.
fn settle(measured: u64, earlier: Option<u64>) -> u64 {
    match earlier {
        Some(earlier) if earlier.abs_diff(measured) * 1_000_000 <= measured * SAME_PPM => earlier,
        _ => measured,
    }
}

/// The median of three windows: the first is often a little off.
fn measure() -> u64 {
    let mut windows = [0u64; 3].map(|_| window(Duration::from_millis(10)));
    windows.sort_unstable();
    windows[1]
}

fn window(length: Duration) -> u64 {
    let (from_ticks, from) = sample();
    thread::sleep(length);
    let (to_ticks, to) = sample();
    let nanoseconds = u128::from(to.saturating_sub(from).max(1));
    let ticks = u128::from(to_ticks.saturating_sub(from_ticks));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// Counter and clock at the same moment: of some tries, the one in which the least time passed between them.
fn sample() -> (u64, u64) {
    let tries = (0..16).map(|_| {
        let before = sys::time_stamp_counter();
        let clock = monotonic_ns();
        let gap = sys::time_stamp_counter().saturating_sub(before);
        (gap, before + gap / 2, clock)
    });
    tries.min().map_or((0, 0), |(_, ticks, clock)| (ticks, clock))
}

/// One that no time server bends.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC_RAW;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

fn monotonic_ns() -> u64 {
    clock_gettime(CLOCK).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequency_is_plausible_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let first = khz(folder.path());
        assert!((500_000..10_000_000).contains(&first), "{first} kHz");
        assert_eq!(khz(folder.path()), first);
    }

    #[test]
    fn a_close_measurement_keeps_the_earlier_value() {
        assert_eq!(settle(2_596_154, Some(2_596_100)), 2_596_100);
        assert_eq!(settle(2_596_154, Some(2_600_000)), 2_596_154);
        assert_eq!(settle(2_596_154, None), 2_596_154);
    }
}
