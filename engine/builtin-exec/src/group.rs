//! A command's process group.

#[cfg(target_os = "linux")]
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::sync::oneshot;

use crate::sys;

/// `sh -c` and what it has started. Its first process is not reaped before [`Group::reap`]: until then the number is its
/// own.
pub(crate) struct Group {
    leader: Child,
    id: Pid,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exited(i32),
    /// By the signal of this number.
    Killed(i32),
}

impl Group {
    pub(crate) fn start(command: &str, folder: &Path, guard: OwnedFd) -> io::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(folder);
        sys::begin_guarded(&mut shell, guard);
        let leader = shell.spawn()?;
        let id = i32::try_from(leader.id()).map_err(io::Error::other)?;
        Ok(Self { leader, id: Pid::from_raw(id) })
    }

    /// Resolves when the shell has ended; what it left behind may still run.
    pub(crate) fn end(&self) -> io::Result<oneshot::Receiver<io::Result<End>>> {
        let (told, ended) = oneshot::channel();
        let id = self.id;
        // A thread of its own: the runtime's would keep it from ending.
        thread::Builder::new().name("exec-wait".into()).spawn(move || {
            let _ = told.send(wait(id));
        })?;
        Ok(ended)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = killpg(self.id, signal);
    }

    /// Waits for the shell, which must have been killed.
    pub(crate) fn reap(&mut self) {
        let _ = self.leader.wait();
    }
}

fn wait(id: Pid) -> io::Result<End> {
    let leader = rustix::process::Pid::from_raw(id.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    loop {
        let ended = match waitid(WaitId::Pid(leader), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(code) = ended.exit_status() {
            return Ok(End::Exited(code));
        }
        if let Some(signal) = ended.terminating_signal() {
            return Ok(End::Killed(signal));
        }
    }
}

/// Whether a process of one of the groups still runs.
#[cfg(target_os = "linux")]
pub(crate) fn any_runs(groups: &[Group]) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter_map(|stat| running_group(&stat))
        .any(|id| groups.iter().any(|group| group.id.as_raw() == id))
}

/// Whether a process of one of the groups still runs: a signal reaches no group of which only exit statuses are left.
#[cfg(not(target_os = "linux"))]
pub(crate) fn any_runs(groups: &[Group]) -> bool {
    groups.iter().any(|group| killpg(group.id, None).is_ok())
}

/// The process group in a line of `/proc/PID/stat`, unless only the exit status is left of the process.
#[cfg(any(target_os = "linux", test))]
fn running_group(stat: &str) -> Option<i32> {
    // The name in parentheses may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_from_a_line_with_any_name_in_it() {
        assert_eq!(running_group("7 (sh) S 1 42 42 0 -1"), Some(42));
        assert_eq!(running_group("7 (a) Z 1 (b)) R 1 42 43"), Some(42));
        assert_eq!(running_group("7 (sh) Z 1 42 42 0"), None);
        assert_eq!(running_group("7 (sh"), None);
        assert_eq!(running_group(""), None);
    }
}
