//! A process that outlives the engine by a moment, and takes the commands along.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::sys;

/// Reads the numbers of process groups until the engine's end of the socket is closed, by whatever ends the engine.
///
/// A parent-death signal would do for the shell only, not for what it starts, and it is sent when the thread ends that
/// started the shell.
const SCRIPT: &str = r#"groups=; while read -r group; do groups="$groups -$group"; done; kill -s KILL -- $groups"#;

pub(crate) struct Guard {
    process: Child,
    ours: OwnedFd,
}

impl Guard {
    pub(crate) fn post() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).current_dir("/");
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        sys::begin_apart(&mut command);
        Ok(Self { process: command.spawn()?, ours: ours.into() })
    }

    /// Where a group tells its number.
    pub(crate) fn line(&self) -> io::Result<OwnedFd> {
        self.ours.try_clone()
    }

    /// It kills nobody any more.
    pub(crate) fn dismiss(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
