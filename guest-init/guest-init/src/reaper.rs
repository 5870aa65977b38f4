//! Collects every child and orphan, and tells a life that its process has ended. Only a child that never became its
//! program is collected elsewhere: by `spawn`, under the lock that is held here.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::wire::{Stream, lock};

/// Collects ended processes for as long as the program runs. One per process: two would take each other's children.
#[derive(Clone)]
pub(crate) struct Reaper(Arc<Shared>);

/// Between two looks at a lock that somebody holds for long.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

static REAPER: OnceLock<Reaper> = OnceLock::new();

struct Shared {
    /// Held across a spawn, so that a process cannot end before it is known.
    waiting: Mutex<HashMap<i32, Arc<Stream>>>,
    changed: Condvar,
}

impl Reaper {
    pub(crate) fn get() -> Self {
        REAPER.get_or_init(Self::start).clone()
    }

    fn start() -> Self {
        let shared = Arc::new(Shared { waiting: Mutex::new(HashMap::new()), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        // Without this thread nothing could ever be waited for; there is no better answer than to try.
        let _ = thread::Builder::new().stack_size(64 * 1024).spawn(move || reap(&of_thread));
        Self(shared)
    }

    /// Runs `start` under the lock, so that the process it starts cannot be collected before it is known; its exit status
    /// is delivered to `stream`.
    pub(crate) fn watch(&self, stream: &Arc<Stream>, start: impl FnOnce() -> io::Result<Pid>) -> io::Result<Pid> {
        let mut waiting = lock(&self.0.waiting);
        let pid = start()?;
        waiting.insert(pid.as_raw(), Arc::clone(stream));
        self.0.changed.notify_all();
        Ok(pid)
    }

    /// Waits until no process we started is left, at most `patience`.
    pub(crate) fn wait_for_nobody(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        // A child that is stopped before it is its program holds the lock.
        let mut waiting = loop {
            match self.0.waiting.try_lock() {
                Ok(waiting) => break waiting,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return,
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            }
        };
        while !waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = match self.0.changed.wait_timeout(waiting, left) {
                Ok((waiting, _)) => waiting,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn reap(shared: &Shared) {
    loop {
        // Only looks: a child whose `exec` fails is collected by the spawn that waits for it, under the lock.
        let found = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) => status.pid(),
            Err(Errno::EINTR) => continue,
            // No child at all: there will be none until somebody spawns one.
            Err(_) => {
                let waiting = lock(&shared.waiting);
                if waiting.is_empty() {
                    drop(shared.changed.wait(waiting));
                }
                continue;
            }
        };
        let mut waiting = lock(&shared.waiting);
        let Some(found) = found else { continue };
        // The same call again: an emulator has translated it.
        let (pid, status) = match waitid(Id::Pid(found), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(_) | Err(_) => continue,
        };
        let ended = waiting.remove(&pid.as_raw());
        drop(waiting);
        if let Some(stream) = ended {
            stream.exited(status);
        }
        shared.changed.notify_all();
    }
}
