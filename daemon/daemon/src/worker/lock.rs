//! One change to a project's workers at a time: the advisory lock `.iii-worker.lock`.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use daemon_api::WorkerError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const FILE: &str = ".iii-worker.lock";

/// Held until dropped; the kernel releases it when this process dies. The file stays: a new one would be another lock.
pub(crate) struct ProjectLock {
    _lock: Flock<File>,
}

/// # Errors
/// [`WorkerError::LockBusy`] names the process that holds it.
pub(crate) fn take(project: &Path) -> Result<ProjectLock, WorkerError> {
    let path = project.join(FILE);
    let failed = |error: std::io::Error| WorkerError::LockIo { path: path.clone(), reason: error.to_string() };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            let pid = format!("pid={}\n", std::process::id());
            fs::write(&path, pid).map_err(failed)?;
            Ok(ProjectLock { _lock: lock })
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let holder_pid = text.trim().strip_prefix("pid=").and_then(|pid| pid.parse().ok());
            Err(WorkerError::LockBusy { holder_pid, holder_is_self: holder_pid == Some(std::process::id()) })
        }
        Err((_, error)) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_hears_who_holds_it() {
        let project = tempfile::TempDir::new().expect("a folder");
        let held = take(project.path());
        assert!(held.is_ok());
        let refused = take(project.path()).err().expect("it is held");
        assert!(matches!(refused, WorkerError::LockBusy { holder_is_self: true, .. }), "{refused:?}");
        drop(held);
        assert!(take(project.path()).is_ok());
    }
}
