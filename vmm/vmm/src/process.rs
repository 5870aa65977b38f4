//! One VM as a child process.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::{CommandError, CommandFailed, SnapshotTaken, VmCommand, VmSpec, sys};

/// Longest line `iii-vm` may print; it parses what a guest sends, so it is not trusted further than needed.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// How much of a log goes into [`VmExit::Failed`].
const TAIL_BYTES: u64 = 4 * 1024;

/// How long `iii-vm` may live after its last event.
const LINGER: Duration = Duration::from_secs(2);

/// What `iii-vm` reports, one JSON object per line of its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VmEvent {
    /// A template is being made for this shape; happens once per machine and takes seconds.
    BuildingTemplate,
    /// The guest's processors run. `accel` is `kvm` or `tcg`; `driver_ms` is the time since `iii-vm` started.
    Running {
        driver: String,
        accel: String,
        start: VmStart,
        driver_ms: u64,
    },
    /// Something a person should know, such as a template that could not be restored.
    Warning {
        message: String,
    },
    /// Answers to a [`VmCommand`].
    Paused,
    Resumed,
    Snapshotted(SnapshotTaken),
    CommandFailed(CommandFailed),
    /// Comes once, and last.
    Exited(VmExit),
}

/// How a machine came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmStart {
    Booted,
    /// From the files of a template or a snapshot.
    Restored,
    /// From its source's process.
    Forked,
}

impl VmStart {
    /// Its guest says hello; others were up before.
    #[must_use]
    pub fn is_boot(self) -> bool {
        self == Self::Booted
    }
}

impl VmEvent {
    fn is_answer(&self) -> bool {
        matches!(self, Self::Paused | Self::Resumed | Self::Snapshotted(_) | Self::CommandFailed(_))
    }
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off, or we asked it to end.
    Stopped,
    /// The VM could not be started, or broke; `console_tail` holds the guest's last words.
    Failed { reason: String, hint: Option<String>, console_tail: String },
    /// The snapshot that was asked for cannot be restored; nothing ran.
    Unrestorable { kind: Unrestorable, reason: String, hint: Option<String> },
}

/// Why a snapshot cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unrestorable {
    /// It needs something that has changed since it was taken.
    Unfit,
    /// Its files are not what was written.
    Damaged,
}

/// Why no `iii-vm` could be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot prepare {path} for the VM {vm:?}", path = path.display())]
    RunDir { vm: String, path: PathBuf, source: io::Error },
    #[error("cannot write the description of the VM {vm:?}")]
    Encode { vm: String, source: serde_json::Error },
    #[error("cannot make the guest channel of the VM {vm:?}")]
    Channel { vm: String, source: io::Error },
    #[error("cannot start {program} for the VM {vm:?}", program = program.display())]
    Program { vm: String, program: PathBuf, source: io::Error },
}

impl SpawnError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Program { program, source, .. } if source.kind() == io::ErrorKind::NotFound => Some(format!(
                "iii-vm is expected at {}; build it with `make`, or name its folder in III_BIN_DIR",
                program.display()
            )),
            Self::RunDir { path, .. } => Some(format!("check the space left and the owner of {}", path.display())),
            _ => None,
        }
    }
}

/// A running `iii-vm`; dropping it ends the VM.
#[derive(Debug)]
pub struct Vm {
    name: String,
    run_dir: PathBuf,
    pid: u32,
    child: Child,
    lifeline: Option<ChildStdin>,
    stdout: ChildStdout,
    unread: Vec<u8>,
    /// Commands that `iii-vm` has not been given completely.
    unsent: Vec<u8>,
    asked: u64,
    answered: u64,
    /// What was said while an answer was awaited.
    held_back: VecDeque<VmEvent>,
    killed: bool,
    exit: Option<VmExit>,
}

impl Vm {
    /// Starts `iii_vm` for `spec`. The stream is the host's end of the guest channel; it ends with the VM.
    ///
    /// # Errors
    /// [`SpawnError`] when the run directory cannot be written or the program does not start. What goes
    /// wrong afterwards arrives as [`VmExit::Failed`].
    pub async fn spawn(spec: &VmSpec, iii_vm: &Path) -> Result<(Vm, UnixStream), SpawnError> {
        let vm = || spec.name.clone();
        let run_dir = |source| SpawnError::RunDir { vm: vm(), path: spec.run_dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&spec.run_dir).map_err(run_dir)?;
        let encoded = serde_json::to_vec_pretty(spec).map_err(|source| SpawnError::Encode { vm: vm(), source })?;
        let spec_path = spec.run_dir.join("vm.json");
        private_file(&spec_path).and_then(|mut file| file.write_all(&encoded)).map_err(run_dir)?;
        let log = private_file(&spec.run_dir.join("vm.log")).map_err(run_dir)?;
        let (ours, theirs) = UnixStream::pair().map_err(|source| SpawnError::Channel { vm: vm(), source })?;

        let mut command = std::process::Command::new(iii_vm);
        command.arg(&spec_path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        sys::prepare_child(&mut command, OwnedFd::from(theirs));
        let program = |source| SpawnError::Program { vm: vm(), program: iii_vm.to_owned(), source };
        let mut child = spawn_from_lasting_thread(command).await.map_err(program)?;
        let (Some(lifeline), Some(stdout), Some(pid)) = (child.stdin.take(), child.stdout.take(), child.id()) else {
            return Err(program(io::Error::other("the new process has no pipes")));
        };
        let vm = Vm {
            name: spec.name.clone(),
            run_dir: spec.run_dir.clone(),
            pid,
            child,
            lifeline: Some(lifeline),
            stdout,
            unread: Vec::new(),
            unsent: Vec::new(),
            asked: 0,
            answered: 0,
            held_back: VecDeque::new(),
            killed: false,
            exit: None,
        };
        Ok((vm, ours))
    }

    /// The next thing `iii-vm` says. The last is [`VmEvent::Exited`], also when `iii-vm` was killed;
    /// asking again after it repeats it. Safe to cancel.
    pub async fn next_event(&mut self) -> VmEvent {
        match self.held_back.pop_front() {
            Some(event) => event,
            None => self.hear().await,
        }
    }

    /// Sends `command` and waits for its answer, passing over those of commands whose caller did not wait.
    pub(crate) async fn ask(&mut self, command: &VmCommand) -> Result<VmEvent, CommandError> {
        self.unsent.extend(serde_json::to_vec(command).map_err(|_| CommandError::Confused)?);
        self.unsent.push(b'\n');
        self.asked += 1;
        let mine = self.asked;
        while !self.unsent.is_empty() {
            let Some(lifeline) = &mut self.lifeline else { break };
            match lifeline.write(&self.unsent).await {
                Ok(written @ 1..) => drop(self.unsent.drain(..written)),
                // It is about to end, and to say why.
                Ok(0) | Err(_) => break,
            }
        }
        loop {
            match self.hear().await {
                VmEvent::Exited(exit) => return Err(CommandError::Ended(exit)),
                event if !event.is_answer() => self.held_back.push_back(event),
                _ if self.answered < mine => {}
                VmEvent::CommandFailed(failed) => return Err(failed.into()),
                answer => return Ok(answer),
            }
        }
    }

    async fn hear(&mut self) -> VmEvent {
        loop {
            if let Some(exit) = &self.exit {
                // The process may outlive its last line by a moment; it must not outlive the event.
                let exit = exit.clone();
                self.lifeline = None;
                if !matches!(tokio::time::timeout(LINGER, self.child.wait()).await, Ok(Ok(_))) {
                    self.kill();
                    let _ = self.child.wait().await;
                }
                return VmEvent::Exited(exit);
            }
            if let Some(line) = self.take_line() {
                match serde_json::from_slice(&line) {
                    Ok(VmEvent::Exited(exit)) => self.exit = Some(exit),
                    Ok(event) => {
                        self.answered += u64::from(event.is_answer() && self.answered < self.asked);
                        return event;
                    }
                    Err(error) => tracing::warn!(vm = %self.name, %error, "iii-vm printed something that is no event"),
                }
                continue;
            }
            if self.unread.len() > MAX_EVENT_BYTES {
                self.exit = Some(self.failed(format!("iii-vm printed a line of more than {MAX_EVENT_BYTES} bytes")));
                self.kill();
                continue;
            }
            match self.stdout.read_buf(&mut self.unread).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => {
                    let status = self.child.wait().await;
                    self.exit = Some(self.silent_end(status));
                }
            }
        }
    }

    /// Waits for the end; warnings go to the log meanwhile.
    pub async fn wait(&mut self) -> VmExit {
        loop {
            match self.next_event().await {
                VmEvent::Exited(exit) => return exit,
                VmEvent::Warning { message } => tracing::warn!(vm = %self.name, "{message}"),
                _ => {}
            }
        }
    }

    /// Ends the VM at once. [`VmExit::Stopped`] follows.
    pub fn kill(&mut self) {
        self.killed = true;
        self.lifeline = None;
        // `id` is None once the process was reaped, so the group cannot be someone else's. libkrun's process is in it; QEMU
        // has a group of its own, and ends by its parent-death signal, or by its leash.
        if let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }

    /// Process id of `iii-vm`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.unread.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    /// `iii-vm` ended without its last event.
    fn silent_end(&self, status: io::Result<ExitStatus>) -> VmExit {
        if self.killed {
            return VmExit::Stopped;
        }
        self.failed(match status {
            Ok(status) => match status.signal() {
                Some(signal) => format!("iii-vm was killed by signal {signal}"),
                None => format!("iii-vm ended with status {} and gave no reason", status.code().unwrap_or(-1)),
            },
            Err(error) => format!("the end of iii-vm could not be observed: {error}"),
        })
    }

    fn failed(&self, reason: String) -> VmExit {
        VmExit::Failed {
            reason,
            hint: Some(format!("its log is {}", self.run_dir.join("vm.log").display())),
            console_tail: tail(&self.run_dir.join("console.log")).unwrap_or_default(),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

type Job = Box<dyn FnOnce() + Send>;

/// The parent-death signal follows the *thread* that forked, and a runtime may retire its threads: so every
/// `iii-vm` is forked by one thread that lives as long as this process.
static FORKER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
    let (jobs, work) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("vm-forker".to_owned())
        .spawn(move || work.into_iter().for_each(|job| job()))
        .map_or_else(|_| mpsc::channel().0, |_| jobs)
});

async fn spawn_from_lasting_thread(command: std::process::Command) -> io::Result<Child> {
    let runtime = tokio::runtime::Handle::current();
    let (reply, answer) = tokio::sync::oneshot::channel();
    let job: Job = Box::new(move || {
        let _entered = runtime.enter();
        let mut command = tokio::process::Command::from(command);
        let _ = reply.send(command.kill_on_drop(true).spawn());
    });
    FORKER.send(job).map_err(|_| io::Error::other("the thread that starts VMs is gone"))?;
    answer.await.map_err(|_| io::Error::other("the thread that starts VMs is gone"))?
}
