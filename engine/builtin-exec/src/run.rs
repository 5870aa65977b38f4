//! One run of the pipeline: its groups and their guard.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::group::{End, Group, any_runs};
use crate::guard::Guard;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// How often is looked whether all have ended.
const LOOK: Duration = Duration::from_millis(20);

/// For processes that the kernel cannot end at once.
const REAP_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Run {
    folder: PathBuf,
    guard: Guard,
    groups: Vec<Group>,
}

impl Run {
    pub(crate) fn begin(folder: PathBuf) -> io::Result<Self> {
        Ok(Self { folder, guard: Guard::post()?, groups: Vec::new() })
    }

    /// Starts a command and waits for its end. Dropping the future leaves it running, for [`Run::end`].
    pub(crate) async fn command(&mut self, command: &str) -> io::Result<End> {
        let group = Group::start(command, &self.folder, self.guard.line()?)?;
        let ended = group.end();
        self.groups.push(group);
        ended?.await.map_err(io::Error::other)?
    }

    /// SIGTERM to all groups, grace, SIGKILL. Returns when the shells have ended and are reaped.
    pub(crate) async fn end(self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while any_runs(&self.groups) {
            if Instant::now() >= deadline {
                warn!("a command did not end after SIGTERM, it is killed");
                break;
            }
            sleep(LOOK).await;
        }
        let reaping = tokio::task::spawn_blocking(move || drop(self));
        if timeout(REAP_PATIENCE, reaping).await.is_err() {
            warn!("a command that was killed has not ended yet");
        }
    }

    fn signal(&self, signal: Signal) {
        for group in &self.groups {
            group.signal(signal);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        // Before the groups' numbers can become somebody else's.
        self.guard.dismiss();
        for group in &mut self.groups {
            group.reap();
        }
    }
}
