//! One QEMU process, its console and its complaints.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{QemuError, at};
use crate::sys;

/// Most that one guest's console may take on the host's disk; what follows is only remembered by its end.
pub const CONSOLE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Most of QEMU's own messages that is kept: a guest can provoke some.
const MESSAGES_LIMIT_BYTES: u64 = 64 * 1024;

/// How much of the end of each is kept in memory.
const TAIL_BYTES: usize = 4 * 1024;

const CUT_NOTICE: &[u8] = b"\n[the rest was not written: limit reached]\n";

/// Finds the program: `III_QEMU`, else `qemu-system-x86_64` in `PATH`.
pub(crate) fn find_program() -> Result<PathBuf, QemuError> {
    if let Some(named) = std::env::var_os("III_QEMU").filter(|value| !value.is_empty()) {
        let path = PathBuf::from(&named);
        return if path.is_file() { Ok(path) } else { Err(QemuError::NoQemu { tried: path.display().to_string() }) };
    }
    let name = "qemu-system-x86_64";
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| QemuError::NoQemu { tried: name.to_owned() })
}

/// A running QEMU; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    console: Pump,
    messages: Pump,
}

impl Process {
    /// Starts QEMU. It keeps the descriptors `inherited` and dies with the calling thread.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        inherited: Vec<RawFd>,
        log_dir: &Path,
    ) -> Result<Self, QemuError> {
        let console_log = log_dir.join("console.log");
        let console_file = log(&console_log).map_err(at(console_log))?;
        let message_log = log_dir.join("qemu.log");
        let message_file = log(&message_log).map_err(at(message_log))?;
        let started = |source| QemuError::Start { program: program.to_owned(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::prepare_child(&mut command, inherited);
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

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for the end, and for the last bytes of console and messages.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait();
        self.console.finish();
        self.messages.finish();
        status
    }

    /// The guest's last words.
    pub(crate) fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// QEMU's last words, on one line; where it said nothing, the guest's.
    pub(crate) fn last_message(&self) -> String {
        if let Some(line) = last_line(&self.messages.tail()) {
            return line;
        }
        last_line(&self.console_tail())
            .map_or_else(|| "it gave no reason".to_owned(), |line| format!("the guest's console ends with `{line}`"))
    }
}

fn last_line(text: &str) -> Option<String> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended, for a person.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

fn log(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Carries a pipe into a file up to a limit, and remembers its end.
#[derive(Debug)]
struct Pump {
    tail: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    fn start(name: &str, mut from: impl Read + Send + 'static, mut file: File, limit: u64) -> io::Result<Self> {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&tail);
        let thread = thread::Builder::new().name(format!("qemu-{name}")).spawn(move || {
            let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut buffer = [0u8; 4096];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let bytes = &buffer[..count];
                remember(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), bytes);
                if left == 0 {
                    continue;
                }
                // A full disk must not stop the guest: what cannot be written is dropped.
                let _ = file.write_all(&bytes[..count.min(left)]);
                left -= count.min(left);
                if left == 0 {
                    let _ = file.write_all(CUT_NOTICE);
                }
            }
        })?;
        Ok(Self { tail, thread: Some(thread) })
    }

    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

fn remember(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    let surplus = kept.len().saturating_sub(TAIL_BYTES);
    kept.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooded_console_stays_within_its_limit_and_its_end_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let flood = std::io::repeat(b'x').take(100_000).chain(&b"the end"[..]);
        let mut pump = Pump::start("test", flood, log(&path).unwrap(), 10_000).unwrap();
        pump.finish();
        assert_eq!(std::fs::read(&path).unwrap().len(), 10_000 + CUT_NOTICE.len());
        assert!(pump.tail().ends_with("xthe end"));
        assert_eq!(pump.tail().len(), TAIL_BYTES);
    }
}
