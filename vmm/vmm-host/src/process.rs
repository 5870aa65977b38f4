//! One VM's process, its console and its complaints.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::console::{CONSOLE_LIMIT_BYTES, Pump, last_line, log_file};
use crate::sys::prepare_child;

/// Most of a program's own messages that is kept: a guest can provoke some.
const MESSAGES_LIMIT_BYTES: u64 = 64 * 1024;

/// Why a process does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot use {path}: {source}", path = path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}", program = program.display())]
    Start { program: PathBuf, source: io::Error },
}

/// A process that runs a guest; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    console: Pump,
    messages: Pump,
}

impl Process {
    /// Starts `program`, whose memory may be in `huge_pages` or not. It keeps the descriptors `inherited` and dies with the calling thread. Its standard output is
    /// the guest's console, kept in `console.log`; what it says itself goes into `<name>.log`.
    ///
    /// # Errors
    /// [`ProcessError`] when a log cannot be made, or the program does not start.
    pub fn start(
        program: &Path,
        arguments: &[String],
        inherited: Vec<RawFd>,
        log_dir: &Path,
        name: &str,
        huge_pages: bool,
    ) -> Result<Self, ProcessError> {
        let open = |path: PathBuf| log_file(&path).map_err(|source| ProcessError::Log { path, source });
        let console_file = open(log_dir.join("console.log"))?;
        let message_file = open(log_dir.join(format!("{name}.log")))?;
        let started = |source| ProcessError::Start { program: program.to_owned(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare_child(&mut command, inherited, huge_pages);
        let mut child = command.spawn().map_err(started)?;
        let (Some(console), Some(messages)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(started(io::Error::other("it has no pipes")));
        };
        Ok(Self {
            child,
            console: Pump::start("console", console, console_file, CONSOLE_LIMIT_BYTES).map_err(started)?,
            messages: Pump::start("messages", messages, message_file, MESSAGES_LIMIT_BYTES).map_err(started)?,
        })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for the end, and for the last bytes of console and messages.
    ///
    /// # Errors
    /// The end could not be observed.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait();
        self.console.finish();
        self.messages.finish();
        status
    }

    /// The guest's last words.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// The program's last words, on one line; where it said nothing, the guest's.
    #[must_use]
    pub fn last_message(&self) -> String {
        if let Some(line) = last_line(&self.messages.tail()) {
            return line;
        }
        last_line(&self.console_tail())
            .map_or_else(|| "it gave no reason".to_owned(), |line| format!("the guest's console ends with `{line}`"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
