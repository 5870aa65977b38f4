//! A process under load, and what it has used.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Ends with this value.
pub(crate) struct Server(Child);

/// Free a moment ago; nothing else here asks for ports.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|found| found.local_addr()).expect("a port").port()
}

impl Server {
    /// Starts it, and waits until it listens on `port`.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn start(command: &mut Command, port: u16) -> io::Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self(process);
        let deadline = Instant::now() + STARTS_WITHIN;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen on {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Processor time of all its threads, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("its threads");
        let nanoseconds = |task: fs::DirEntry| -> u64 {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.flatten().map(nanoseconds).sum())
    }

    /// Of `/proc/PID/status`: `VmRSS` now, `VmHWM` at most.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("its status");
        let line = text.lines().find(|line| line.starts_with(name)).expect("a number");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("KiB")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
