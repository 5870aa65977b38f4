//! A VM's process that somebody else forked: killed and waited for without being its parent.

use std::fs::File;
use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{kill_process, open_process};

/// Dropping it kills the process.
#[derive(Debug)]
pub struct ForkedProcess {
    pid: u32,
    process: OwnedFd,
    /// A pipe that nothing is written to: when it closes, the kernel kills the process, also if this one is killed.
    _leash: PipeWriter,
    /// Carries the wait status when the process has ended, then closes.
    status: File,
    ended: Option<ExitStatus>,
}

impl ForkedProcess {
    /// `leash` is the end of the pipe that is held here, `status` the connection to who has forked it.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn new(pid: u32, leash: PipeWriter, status: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, process: open_process(pid)?, _leash: leash, status: status.into(), ended: None })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn kill(&mut self) {
        kill_process(&self.process);
    }

    /// # Errors
    /// It has ended, but how is not known: its parent ended first.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        let mut status = [0; 4];
        if let Err(error) = self.status.read_exact(&mut status) {
            let mut process = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            while poll(&mut process, PollTimeout::NONE) == Err(Errno::EINTR) {}
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the process that it was forked by ended first")
                }
                _ => error,
            });
        }
        Ok(*self.ended.insert(ExitStatus::from_raw(i32::from_ne_bytes(status))))
    }
}

impl Drop for ForkedProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};

    use super::*;

    fn sleeping() -> (Child, ForkedProcess, UnixStream) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let (status, parent) = UnixStream::pair().unwrap();
        let process = ForkedProcess::new(child.id(), io::pipe().unwrap().1, status.into()).unwrap();
        (child, process, parent)
    }

    #[test]
    fn it_is_killed_and_its_end_is_told() {
        let (mut child, mut process, mut parent) = sleeping();
        process.kill();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
        parent.write_all(&status.into_raw().to_ne_bytes()).unwrap();
        drop(parent);
        assert_eq!(process.wait().unwrap(), status);
        assert_eq!(process.wait().unwrap(), status);
    }

    #[test]
    fn when_its_parent_ended_first_its_end_is_awaited_and_how_is_an_error() {
        let (mut child, mut process, parent) = sleeping();
        drop(parent);
        let waiting = std::thread::spawn(move || process.wait().unwrap_err());
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished());
        child.kill().unwrap();
        let error = waiting.join().unwrap();
        assert!(error.to_string().contains("ended first"), "{error}");
        child.wait().unwrap();
    }
}
