//! `iii-daemon`: keeps sandboxes and workers as they were asked to be.
//!
//! ```text
//! functions/  a file per function: decode, call, encode
//! sandbox/    short-lived machines: limits, reaper
//! worker/     declared ones: manifest, store, supervisor, watcher
//! serve       one daemon, from its functions to its end
//! machine     where image, VM and guest meet
//! ```
//! Knows no driver and no guest packet: those are `iii-vm`'s.
//!
//! Always true:
//! - No VM outlives this process, and this process does not outlive its engine.
//! - A file of the image store is never given to a VM writable.

mod catalog;
mod config;
mod functions;
mod home;
mod lifeline;
mod machine;
#[cfg(target_os = "linux")]
mod orphans;
mod sandbox;
mod serve;
mod sys;
mod turns;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use engine_client::{Client, ClientConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::config::SandboxConfig;
use crate::home::{Home, NotOwned};
use crate::machine::{Choices, Machines};
use crate::serve::Project;

#[derive(Parser)]
#[command(name = "iii-daemon", version)]
struct Arguments {
    #[command(subcommand)]
    daemon: Daemon,
}

#[derive(Subcommand)]
enum Daemon {
    /// Serves `worker::*`.
    Workers {
        #[command(flatten)]
        common: Common,
        #[arg(long, env = "IIIWORKER_PROJECT_ROOT", default_value = ".")]
        project_root: PathBuf,
        /// The engine's configuration file; relative to the project's root.
        #[arg(long, default_value = "config.yaml")]
        config_file: PathBuf,
        /// `auto`, `libkrun` or `qemu`; `III_DRIVER` has precedence.
        #[arg(long)]
        driver: Option<String>,
        /// `auto`, `kvm` or `tcg`; `III_ACCEL` has precedence.
        #[arg(long)]
        accel: Option<String>,
    },
    /// Serves `sandbox::*`.
    Sandboxes {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Args)]
struct Common {
    /// The engine's worker socket.
    #[arg(long, default_value = "ws://127.0.0.1:49134")]
    engine: String,
    /// Where the engine listens for our VMs.
    #[arg(long)]
    vm_socket: PathBuf,
}

/// Swallows what cannot be written: a lost reader must not end a daemon that still has VMs to stop.
struct Resilient;

impl std::io::Write for Resilient {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stdout().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = std::io::stdout().flush();
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("III_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time().with_writer(|| Resilient).init();
    let home = match Home::open() {
        Ok(home) => home,
        Err(error) => return fail(1, &format!("could not prepare the home: {error}")),
    };
    let (name, common) = match &arguments.daemon {
        Daemon::Workers { common, .. } => ("workers", common),
        Daemon::Sandboxes { common, .. } => ("sandboxes", common),
    };
    let stop = CancellationToken::new();
    lifeline::watch(name, home.logs(), stop.clone());
    let Some(port) = port_of(&common.engine) else {
        return fail(2, &format!("`{}` is no ws://host:port", common.engine));
    };
    let lock = match home::own(&home.run(), &format!("{name}-{port}.lock")) {
        Ok(lock) => lock,
        Err(NotOwned::Held { pid }) => {
            return fail(1, &format!("a daemon for {name} of the engine on port {port} runs already: process {pid}"));
        }
        Err(NotOwned::Io(error)) => return fail(1, &format!("could not lock {}: {error}", home.run().display())),
    };
    let sandbox_config = match &arguments.daemon {
        Daemon::Sandboxes { config, .. } => match SandboxConfig::load(config) {
            Ok(config) => Some(config),
            Err(problem) => return fail(2, &format!("configuration: {problem}")),
        },
        Daemon::Workers { .. } => None,
    };
    let (driver, accel) = match (&arguments.daemon, &sandbox_config) {
        (Daemon::Workers { driver, accel, .. }, _) => (driver.as_deref(), accel.as_deref()),
        (_, Some(config)) => (config.driver.as_deref(), config.accel.as_deref()),
        (_, None) => (None, None),
    };
    let choices = match vmm::settle_choices(driver, accel) {
        Ok((driver, accel)) => {
            // Workers have disks of their own: none can take another's place.
            let warm_pool_mib = sandbox_config.as_ref().map_or(0, |config| config.warm_pool_mb);
            Choices { driver, accel, warm_pool_mib }
        }
        Err(error) => return fail(2, &format!("configuration: {error} ({})", error.hint())),
    };
    let machines = match Machines::new(home.clone(), port, common.vm_socket.clone(), choices) {
        Ok(machines) => machines,
        Err(error) => return fail(1, &format!("image store: {error}")),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("no runtime: {error}")),
    };
    runtime.block_on(async {
        tokio::spawn(on_signals(stop.clone()));
        #[cfg(target_os = "linux")]
        if sandbox_config.is_some() {
            orphans::take();
        }
        let (worker, description) = match name {
            "workers" => ("iii-worker-ops", "Adds, starts, stops and inspects workers in microVMs"),
            _ => ("iii-sandbox", "Runs untrusted code in throw-away microVMs"),
        };
        let client = Client::connect(ClientConfig {
            url: common.engine.clone(),
            name: worker.into(),
            description: Some(description.into()),
        });
        info!(engine = common.engine, "started");
        match (&arguments.daemon, sandbox_config) {
            (Daemon::Sandboxes { .. }, Some(config)) => {
                serve::sandboxes(config, machines, client, stop).await;
                #[cfg(target_os = "linux")]
                orphans::settle().await;
            }
            (Daemon::Workers { project_root, config_file, .. }, _) => {
                let root = std::path::absolute(project_root).unwrap_or_else(|_| project_root.clone());
                let config_file = root.join(config_file);
                serve::workers(Project { root, config_file, engine_port: port }, machines, client, stop).await;
            }
            (Daemon::Sandboxes { .. }, None) => {}
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    ExitCode::SUCCESS
}

async fn on_signals(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return;
    };
    tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hangup.recv() => {} }
    stop.cancel();
}

fn port_of(url: &str) -> Option<u16> {
    url.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}

fn fail(status: u8, problem: &str) -> ExitCode {
    error!("{problem}");
    ExitCode::from(status)
}
