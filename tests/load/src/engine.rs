//! An engine of its own, and what it has used.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) struct Engine {
    process: Child,
    pub(crate) port: u16,
    _folder: TempDir,
}

/// The engine beside this program.
pub(crate) fn of_this_build() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    own.with_file_name("iii-engine")
}

impl Engine {
    /// Starts it without daemons, and waits until it listens.
    pub(crate) fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Free a moment ago; nothing else here asks for ports.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|found| found.local_addr()).expect("a port").port();
        let config = format!("workers:\n  - name: iii-worker-manager\n    config: {{host: 127.0.0.1, port: {port}}}\n");
        let file = folder.path().join("config.yaml");
        fs::write(&file, config).expect("written");
        let process = Command::new(program)
            .arg("--config")
            .arg(&file)
            .current_dir(folder.path())
            .env("III_HOME", folder.path())
            .env("IIIWORKER_DISABLE_BUILTIN_DAEMONS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the engine does not listen on {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, port, _folder: folder }
    }

    /// Processor time of all its threads, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("its threads");
        let nanoseconds = |task: fs::DirEntry| -> u64 {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.flatten().map(nanoseconds).sum())
    }

    /// Of `/proc/PID/status`: `VmRSS` now, `VmHWM` at most.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("its status");
        let line = text.lines().find(|line| line.starts_with(name)).expect("a number");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("KiB")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
