//! Short-lived machines: who is alive, within which limits, and until when.

mod command;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use engine_client::Client;
use tokio_util::sync::CancellationToken;

pub(crate) use command::{argv, environment, stdin};
pub(crate) use registry::{Activity, Sandboxes, Seat};

use crate::config::SandboxConfig;
use crate::functions;
use crate::machine::Machines;

/// How often idle sandboxes and dead VMs are looked for.
const REAP: Duration = Duration::from_secs(1);

/// Serves `sandbox::*` until `stop`; then no sandbox is left.
pub(crate) async fn run(config: SandboxConfig, machines: Arc<Machines>, client: Client, stop: CancellationToken) {
    let sandboxes = Arc::new(Sandboxes::new(config, machines, client.clone()));
    functions::register_sandbox(&client, &sandboxes);
    let mut interval = tokio::time::interval(REAP);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        sandboxes.reap().await;
    }
    sandboxes.stop_all().await;
    client.shutdown().await;
}
