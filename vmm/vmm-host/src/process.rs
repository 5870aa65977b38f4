//! One VM's process, its console and its complaints.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::console::{CONSOLE_LIMIT_BYTES, Pump, last_line, log_file};
use crate::forked::ForkedProcess;
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

/// How a program runs, on Linux.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Its memory may be in huge pages.
    pub huge_pages: bool,
    /// A signal to our group does not reach it, nor those that it forks: they may belong to another VM.
    pub own_group: bool,
}

#[derive(Debug)]
enum Body {
    Child(Child),
    Forked(ForkedProcess),
}

/// A process that runs a guest; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    body: Body,
    console: Pump,
    messages: Pump,
}

impl Process {
    /// Starts `program`. It keeps the descriptors `inherited` and dies with the calling thread. Its standard output is the guest's console, kept in `console.log`; what it says itself goes into
    /// `<name>.log`.
    ///
    /// # Errors
    /// [`ProcessError`] when a log cannot be made, or the program does not start.
    pub fn start(
        program: &Path,
        arguments: &[String],
        inherited: Vec<RawFd>,
        log_dir: &Path,
        name: &str,
        manner: Manner,
    ) -> Result<Self, ProcessError> {
        let logs = Logs::open(log_dir, name)?;
        let started = |source| ProcessError::Start { program: program.to_owned(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare_child(&mut command, inherited, manner);
        let mut child = command.spawn().map_err(started)?;
        let (Some(console), Some(messages)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(started(io::Error::other("it has no pipes")));
        };
        let (console, messages) = logs.follow(console, messages).map_err(started)?;
        Ok(Self { body: Body::Child(child), console, messages })
    }

    /// A process that exists, and what it says from now on: `console` and `messages` are pipes from it.
    ///
    /// # Errors
    /// [`ProcessError`] when a log cannot be made or followed.
    pub fn forked(
        process: ForkedProcess,
        console: PipeReader,
        messages: PipeReader,
        log_dir: &Path,
        name: &str,
    ) -> Result<Self, ProcessError> {
        let logs = Logs::open(log_dir, name)?;
        let followed = logs.follow(console, messages);
        let (console, messages) = followed.map_err(|source| ProcessError::Start { program: name.into(), source })?;
        Ok(Self { body: Body::Forked(process), console, messages })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.body {
            Body::Child(child) => child.id(),
            Body::Forked(process) => process.pid(),
        }
    }

    pub fn kill(&mut self) {
        match &mut self.body {
            Body::Child(child) => drop(child.kill()),
            Body::Forked(process) => process.kill(),
        }
    }

    /// Waits for the end, and for the last bytes of console and messages.
    ///
    /// # Errors
    /// The end could not be observed.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.body.wait();
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
        let _ = self.body.wait();
    }
}

impl Body {
    fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Child(child) => child.wait(),
            Self::Forked(process) => process.wait(),
        }
    }
}

/// Where what a process says is kept.
struct Logs {
    console: File,
    messages: File,
}

impl Logs {
    fn open(folder: &Path, name: &str) -> Result<Self, ProcessError> {
        let open = |path: PathBuf| log_file(&path).map_err(|source| ProcessError::Log { path, source });
        Ok(Self { console: open(folder.join("console.log"))?, messages: open(folder.join(format!("{name}.log")))? })
    }

    fn follow(
        self,
        console: impl Read + Send + 'static,
        messages: impl Read + Send + 'static,
    ) -> io::Result<(Pump, Pump)> {
        let console = Pump::start("console", console, self.console, CONSOLE_LIMIT_BYTES)?;
        Ok((console, Pump::start("messages", messages, self.messages, MESSAGES_LIMIT_BYTES)?))
    }
}
