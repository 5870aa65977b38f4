//! Takes over processes of VMs whose parent has ended, and waits for their end.
//!
//! QEMU that was forked for children outlives the VM it was forked from; the process of a guest outlives an `iii-vm` that was
//! killed, for a moment. All of them stay below this process, and where `iii` is the first process of a container, nobody else
//! would wait for them.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// The name of a QEMU that is there for others to be forked from (`images/qemu/nursery.c`).
const NURSERY: &str = "iii-nursery";

/// Ending takes them milliseconds.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Takes them from now on, for as long as the runtime lives.
pub(crate) fn take() {
    // Without somebody to wait for them they had better go elsewhere.
    let watched = signal(SignalKind::child()).and_then(|ended| Ok(set_child_subreaper(true).map(|()| ended)?));
    let mut ended = match watched {
        Ok(ended) => ended,
        Err(error) => {
            warn!(%error, "VMs that were forked may leave processes behind");
            return;
        }
    };
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            reap();
        }
    });
}

/// Waits for those that end now that all VMs have: whoever comes after this process need not.
pub(crate) async fn settle() {
    let deadline = Instant::now() + LAST_MOMENT;
    while children().into_iter().any(|pid| is_nursery(&stat_of(pid))) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        reap();
    }
}

fn reap() {
    for pid in children().into_iter().filter(|pid| is_over(*pid, &stat_of(*pid), getpgrp())) {
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

fn stat_of(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

/// A line of `/proc/<pid>/stat`: name, state and group.
fn parts(stat: &str) -> Option<(&str, &str, i32)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((name, fields.next()?, fields.nth(1)?.parse().ok()?))
}

fn is_nursery(stat: &str) -> bool {
    parts(stat).is_some_and(|(name, _, _)| name == NURSERY)
}

/// Whether it is of an orphan that has ended. For our own children somebody waits: they are of our `group`, or lead one, and
/// are an `iii-vm`, or about to become one.
fn is_over(pid: Pid, stat: &str, group: Pid) -> bool {
    parts(stat).is_some_and(|(name, state, of)| {
        let own = of == group.as_raw() || (of == pid.as_raw() && ["iii-vm", "vm-forker"].contains(&name));
        state == "Z" && !own
    })
}

/// Each is listed by one thread of ours.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_orphan_that_has_ended_is_over() {
        let is_over = |stat: &str| super::is_over(Pid::from_raw(12), stat, Pid::from_raw(7));
        assert!(is_over("12 (iii-nursery) Z 1 12 12 0"));
        assert!(is_over("12 (a) program) Z 1 12 12 0"));
        assert!(is_over("12 (qemu-system-x86) Z 1 9 12 0"));
        assert!(!is_over("12 (iii-nursery) S 1 12 12 0"));
        // Of libkrun, and of ours.
        assert!(is_over("12 (iii-vm) Z 1 9 12 0"));
        assert!(!is_over("12 (iii-vm) Z 1 12 12 0"));
        assert!(!is_over("12 (vm-forker) Z 1 12 12 0"));
        assert!(!is_over("12 (docker-credenti) Z 1 7 12 0"));
        assert!(!is_over("12 (iii-nursery) Z) S 1 9"));
        assert!(!is_over(""));
    }

    #[test]
    fn own_children_are_listed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(children().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
