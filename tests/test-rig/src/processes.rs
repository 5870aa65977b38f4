//! What runs on this machine, read from `/proc`.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Clock ticks since boot; with the pid, it names one process for ever.
    pub start_time: u64,
    /// At most 15 bytes, as the kernel has it.
    pub name: String,
    pub command: String,
}

impl Process {
    /// `None` when there is no such process, or only its exit status is left.
    #[must_use]
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; what follows the last one is fields 3 and up.
        let (before, after) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
            name: before.split_once('(')?.1.to_owned(),
            command: String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
        })
    }

    /// Whether this very process still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.start_time == self.start_time)
    }

    /// Every process there is.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Self::find).collect()
    }
}

/// Children of `pid`, their children, and so on.
#[must_use]
pub fn descendants(pid: i32) -> Vec<Process> {
    let all = Process::all();
    let mut family = vec![pid];
    let mut found = Vec::new();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        for process in all.iter().filter(|process| process.parent == parent) {
            family.push(process.pid);
            found.push(process.clone());
        }
        next += 1;
    }
    found
}

/// Sends `signal`; a process that is already gone is fine.
pub fn kill(pid: i32, signal: Signal) {
    let _ = signal::kill(Pid::from_raw(pid), signal);
}

/// Waits until all of them have ended and returns those that have not by then.
#[must_use]
pub fn wait_gone(processes: &[Process], patience: Duration) -> Vec<Process> {
    let mut left = processes.to_vec();
    eventually(patience, || {
        left.retain(Process::alive);
        left.is_empty().then_some(())
    });
    left
}

/// Asks `question` until it answers, or patience ends. A question that takes long is asked less often: where everything is
/// emulated, asking would leave no time for what is waited for.
pub fn eventually<T>(patience: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let asked = Instant::now();
        if let Some(answer) = question() {
            return Some(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let rest = (asked.elapsed() * 4).clamp(Duration::from_millis(20), Duration::from_secs(2));
        thread::sleep(rest.min(left));
    }
}
