//! Declared workers. Being written.

use std::path::PathBuf;
use std::sync::Arc;

use engine_client::Client;
use tokio_util::sync::CancellationToken;

use crate::machine::Machines;

pub(crate) struct DaemonConfig {
    pub(crate) home: PathBuf,
    pub(crate) project_root: PathBuf,
    pub(crate) engine_port: u16,
}

pub(crate) async fn run(config: DaemonConfig, _machines: Arc<Machines>, client: Client, stop: CancellationToken) -> Result<(), std::io::Error> {
    let _ = (config.home, config.project_root, config.engine_port);
    stop.cancelled().await;
    client.shutdown().await;
    Ok(())
}
