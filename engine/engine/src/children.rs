//! The daemons: started, their output forwarded, started again when they die, and taken along at the end.

use std::env;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::live::EngineError;
use crate::sys;

/// How long a daemon may take to end its VMs.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Longest pause before a daemon that keeps dying is started again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

pub(crate) struct Children {
    port: u16,
    vm_socket: PathBuf,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// Of the sandbox daemon, and whether it is through.
    sandboxes: Option<(CancellationToken, oneshot::Receiver<()>)>,
    /// Holds the sandbox daemon's configuration as long as it may be started again.
    sandbox_config: Option<NamedTempFile>,
}

impl Children {
    pub(crate) fn new(port: u16, vm_socket: PathBuf) -> Self {
        Self {
            port,
            vm_socket,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            sandboxes: None,
            sandbox_config: None,
        }
    }

    pub(crate) async fn start(&mut self, config: &Config) -> Result<(), EngineError> {
        if config.worker_daemon {
            let root = env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
            let mut arguments = vec!["--project-root".to_owned(), root.display().to_string()];
            if let Some(file) = &config.file {
                arguments.extend(["--config-file".to_owned(), file.display().to_string()]);
            }
            for (flag, value) in [("--driver", &config.worker_vms.driver), ("--accel", &config.worker_vms.accel)] {
                if let Some(value) = value {
                    arguments.extend([flag.to_owned(), value.clone()]);
                }
            }
            self.spawn("workers", &arguments)?;
        }
        self.start_sandboxes(config)
    }

    /// Ends the sandbox daemon, and its sandboxes, and starts it with another block, if there is one.
    pub(crate) async fn restart_sandboxes(&mut self, config: &Config) -> Result<(), EngineError> {
        if let Some((stop, ended)) = self.sandboxes.take() {
            stop.cancel();
            let _ = ended.await;
        }
        self.start_sandboxes(config)
    }

    fn start_sandboxes(&mut self, config: &Config) -> Result<(), EngineError> {
        if let Some(block) = &config.sandbox {
            let file = write_private(&block.to_string())
                .map_err(|source| EngineError::Child { program: "iii-daemon sandboxes".into(), source })?;
            let path = file.path().display().to_string();
            self.sandbox_config = Some(file);
            self.sandboxes = Some(self.spawn("sandboxes", &["--config".into(), path])?);
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        mode: &'static str,
        arguments: &[String],
    ) -> Result<(CancellationToken, oneshot::Receiver<()>), EngineError> {
        let program = bin_dir().join("iii-daemon");
        let mut words = vec![
            mode.to_owned(),
            "--engine".into(),
            format!("ws://127.0.0.1:{}", self.port),
            "--vm-socket".into(),
            self.vm_socket.display().to_string(),
        ];
        words.extend_from_slice(arguments);
        let failed = |source| EngineError::Child { program: program.display().to_string(), source };
        let first = launch(&program, &words).map_err(failed)?;
        let (stop, (told, ended)) = (self.stop.child_token(), oneshot::channel());
        let keeping = keep_alive(mode, program, words, first, stop.clone());
        self.tasks.spawn(async move {
            keeping.await;
            let _ = told.send(());
        });
        Ok((stop, ended))
    }

    /// SIGTERM to each group, grace, SIGKILL.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A running child and our end of its lifeline, whose closing tells it that we are gone.
struct Running {
    child: Child,
    _lifeline: io::PipeWriter,
}

fn launch(program: &Path, arguments: &[String]) -> io::Result<Running> {
    // Both ends close on exec; the child's is re-opened for it alone.
    let (theirs, ours) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let pid = std::process::id().to_string();
    command.env("III_ENGINE_PID", &pid).env("III_LIFELINE_SPAWNER_PID", &pid);
    command.env("III_LIFELINE_FD", theirs.as_raw_fd().to_string());
    command.process_group(0).kill_on_drop(true);
    sys::keep_lifeline_open(&mut command, theirs.as_raw_fd());
    Ok(Running { child: command.spawn()?, _lifeline: ours })
}

async fn keep_alive(
    mode: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    first: Running,
    stop: CancellationToken,
) {
    let mut pause = Duration::from_millis(200);
    let mut running = Some(first);
    loop {
        if let Some(mut now) = running.take() {
            let started = std::time::Instant::now();
            let status = attend(mode, &mut now.child, &stop).await;
            if stop.is_cancelled() {
                return;
            }
            warn!(daemon = mode, status, "daemon ended by itself, it is started again");
            if started.elapsed() > MAX_PAUSE {
                pause = Duration::from_millis(200);
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(MAX_PAUSE);
        match launch(&program, &arguments) {
            Ok(again) => running = Some(again),
            Err(error) => warn!(daemon = mode, %error, "daemon could not be started"),
        }
    }
}

/// Forwards a child's output until it ends, or ends it when `stop` is cancelled.
async fn attend(mode: &'static str, child: &mut Child, stop: &CancellationToken) -> String {
    let mut forwarding = JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        forwarding.spawn(forward(mode, stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        forwarding.spawn(forward(mode, stderr));
    }
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => {
            signal(group, Signal::SIGTERM);
            match tokio::time::timeout(STOP_GRACE, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    warn!(daemon = mode, "daemon did not end in time, it is killed");
                    signal(group, Signal::SIGKILL);
                    child.wait().await
                }
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), forwarding.join_all()).await;
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = killpg(group, signal);
    }
}

/// Whole lines, so that lines of two programs do not mix.
async fn forward(daemon: &'static str, output: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match level_of(&line) {
            Some(("ERROR", text)) => error!(target: "daemon", daemon, "{text}"),
            Some(("WARN", text)) => warn!(target: "daemon", daemon, "{text}"),
            Some(("INFO", text)) => info!(target: "daemon", daemon, "{text}"),
            // What the daemon's own filter has let through is shown.
            _ => info!(target: "daemon", daemon, "{}", line.trim_start()),
        }
    }
}

/// The level that a line of a daemon's log begins with, and the rest; they log without a time.
fn level_of(line: &str) -> Option<(&str, &str)> {
    let (level, text) = line.trim_start().split_once(' ')?;
    ["ERROR", "WARN", "INFO"].contains(&level).then_some((level, text))
}

fn write_private(text: &str) -> io::Result<NamedTempFile> {
    // Mode 0600 is what `tempfile` gives. JSON is YAML.
    let file = tempfile::Builder::new().prefix("iii-sandbox-").suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    Ok(file)
}

/// Where the other programs of this build are.
fn bin_dir() -> PathBuf {
    env::var_os("III_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
    })
}
