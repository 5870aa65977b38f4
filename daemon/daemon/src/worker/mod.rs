//! Declared workers: config.yaml says which there are, and each is kept running.
//!
//! ```text
//! store (config.yaml) ─► workers ─► supervisor, one task each ─► job ─► machine
//!                                        │
//!          watch ─ changes ─► process ◄──┴──► provision ─► guest
//! ```

mod disk;
mod environment;
mod job;
mod lock;
mod logs;
mod manifest;
mod process;
mod project;
mod provision;
mod source;
mod store;
mod supervisor;
mod wanted;
mod watch;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine_client::Client;
use tokio_util::sync::CancellationToken;

pub(crate) use logs::{Output, positions, tail};
pub(crate) use manifest::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB, FILE as MANIFEST};
pub(crate) use project::{validate_path, validate_text};
pub(crate) use supervisor::Report;
pub(crate) use wanted::valid;
pub(crate) use workers::Workers;

use crate::functions;
use crate::machine::Machines;
use crate::worker::supervisor::Host;

/// How often config.yaml is looked at for changes by hand.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct DaemonConfig {
    pub(crate) project_root: PathBuf,
    /// The engine's configuration file.
    pub(crate) config_file: PathBuf,
    pub(crate) engine_port: u16,
}

/// Serves `worker::*` and runs the workers of config.yaml until `stop`; then none of them runs.
pub(crate) async fn run(config: DaemonConfig, machines: Arc<Machines>, client: Client, stop: CancellationToken) {
    let project = disk::project_key(&config.project_root);
    let host = Arc::new(Host { machines, client: client.clone(), engine_port: config.engine_port, project });
    let workers = Arc::new(Workers::new(host, config.project_root, config.config_file));
    functions::register_worker(&client, &workers);
    while !stop.is_cancelled() {
        workers.reconcile().await;
        let _ = stop.run_until_cancelled(tokio::time::sleep(LOOK)).await;
    }
    workers.stop_all().await;
    client.shutdown().await;
}
