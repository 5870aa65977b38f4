//! What a VM's process prints, bounded: a guest writes the console, and can provoke messages.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Most that one guest's console may take on the host's disk; what follows is only remembered by its end.
pub const CONSOLE_LIMIT_BYTES: u64 = 1024 * 1024;

/// How much of the end is kept in memory.
const TAIL_BYTES: usize = 4 * 1024;

const CUT_NOTICE: &[u8] = b"\n[the rest was not written: limit reached]\n";

/// What a guest's last words say of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// The kernel said that it would power off or restart. It does so whatever its log level is.
    Orderly,
    KernelPanic,
    /// Nothing: the machine was reset under its kernel, by a triple fault for instance.
    Silent,
}

impl ConsoleEnd {
    #[must_use]
    pub fn of(tail: &str) -> Self {
        if tail.contains("Kernel panic") {
            Self::KernelPanic
        } else if tail.contains("reboot: ") {
            Self::Orderly
        } else {
            Self::Silent
        }
    }
}

/// Opens a log for writing from its start, for its owner only.
pub(crate) fn log_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The last line with something on it.
pub(crate) fn last_line(text: &str) -> Option<String> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// How a process ended, for a person.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Carries a pipe into a file up to a limit, and remembers its end.
#[derive(Debug)]
pub(crate) struct Pump {
    tail: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    pub(crate) fn start(
        name: &str,
        mut from: impl Read + Send + 'static,
        mut file: File,
        limit: u64,
    ) -> io::Result<Self> {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&tail);
        let thread = thread::Builder::new().name(format!("vm-{name}")).spawn(move || {
            let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut buffer = [0u8; 4096];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let bytes = &buffer[..count];
                remember(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), bytes);
                if left == 0 {
                    continue;
                }
                // A full disk must not stop the guest: what cannot be written is dropped.
                let _ = file.write_all(&bytes[..count.min(left)]);
                left -= count.min(left);
                if left == 0 {
                    let _ = file.write_all(CUT_NOTICE);
                }
            }
        })?;
        Ok(Self { tail, thread: Some(thread) })
    }

    /// Waits for the pipe's end, which comes with the process's.
    pub(crate) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

fn remember(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    let surplus = kept.len().saturating_sub(TAIL_BYTES);
    kept.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_how_it_ends_or_was_not_asked() {
        for (tail, end) in [
            ("[    1.2] reboot: Restarting system\n", ConsoleEnd::Orderly),
            ("reboot: Power down", ConsoleEnd::Orderly),
            ("Kernel panic - not syncing: sysrq\nreboot: Restarting system\n", ConsoleEnd::KernelPanic),
            ("anything else\n", ConsoleEnd::Silent),
            ("", ConsoleEnd::Silent),
        ] {
            assert_eq!(ConsoleEnd::of(tail), end, "{tail}");
        }
    }

    #[test]
    fn a_flooded_console_stays_within_its_limit_and_its_end_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let flood = std::io::repeat(b'x').take(100_000).chain(&b"the end"[..]);
        let mut pump = Pump::start("test", flood, log_file(&path).unwrap(), 10_000).unwrap();
        pump.finish();
        assert_eq!(std::fs::read(&path).unwrap().len(), 10_000 + CUT_NOTICE.len());
        assert!(pump.tail().ends_with("xthe end"));
        assert_eq!(pump.tail().len(), TAIL_BYTES);
    }
}
