//! A daemon's life: its functions are offered, its machines looked after, and none is left when it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine_client::Client;
use tokio_util::sync::CancellationToken;

use crate::config::SandboxConfig;
use crate::functions;
use crate::machine::Machines;
use crate::sandbox::Sandboxes;
use crate::worker::{Host, Workers, project_key};

/// How often idle sandboxes and dead VMs are looked for.
const REAP: Duration = Duration::from_secs(1);

/// How often config.yaml is looked at for changes by hand.
const LOOK: Duration = Duration::from_secs(1);

/// Whose workers these are.
pub(crate) struct Project {
    pub(crate) root: PathBuf,
    /// The engine's configuration file.
    pub(crate) config_file: PathBuf,
    pub(crate) engine_port: u16,
}

/// Serves `sandbox::*` until `stop`; then no sandbox is left.
pub(crate) async fn sandboxes(config: SandboxConfig, machines: Arc<Machines>, client: Client, stop: CancellationToken) {
    let sandboxes = Arc::new(Sandboxes::new(config, Arc::clone(&machines), client.clone()));
    functions::register_sandbox(&client, &sandboxes);
    let mut interval = tokio::time::interval(REAP);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        sandboxes.reap().await;
        machines.tend();
    }
    machines.close();
    sandboxes.stop_all().await;
    client.shutdown().await;
}

/// Serves `worker::*` and runs the workers of config.yaml until `stop`; then none of them runs.
pub(crate) async fn workers(project: Project, machines: Arc<Machines>, client: Client, stop: CancellationToken) {
    let Project { root, config_file, engine_port } = project;
    let host = Arc::new(Host { machines, client: client.clone(), engine_port, project: project_key(&root) });
    let workers = Arc::new(Workers::new(host, root, config_file));
    functions::register_worker(&client, &workers);
    while !stop.is_cancelled() {
        workers.reconcile().await;
        let _ = stop.run_until_cancelled(tokio::time::sleep(LOOK)).await;
    }
    workers.stop_all().await;
    client.shutdown().await;
}
