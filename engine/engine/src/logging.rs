//! What the engine writes to its log, and how: as the observability worker's settings say.

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::sync::Arc;

use builtin_configuration::Entry;
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::Config;

/// Wins over everything else, for a look at one start.
const VARIABLE: &str = "III_LOG";

/// Where the settings are stored, before the worker that keeps them has started.
const STORED: &str = "iii-observability.yaml";

/// The engine's log. Clones are the same log.
#[derive(Clone)]
pub struct Logging {
    /// None: the variable says what is logged.
    filter: Option<Arc<reload::Handle<EnvFilter, Registry>>>,
}

impl Logging {
    /// Begins to log to standard output. To be called once.
    #[must_use]
    pub fn begin(config: &Config) -> Self {
        let settings = settings(config);
        let level = settings["level"].as_str().unwrap_or("info");
        let (fixed, filter) = match EnvFilter::try_from_env(VARIABLE) {
            Ok(filter) => (true, filter),
            Err(_) => (false, EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))),
        };
        let (filter, handle) = reload::Layer::new(filter);
        let lines = if settings["format"] == "json" {
            fmt::layer().json().flatten_event(true).with_ansi(false).boxed()
        } else {
            let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            fmt::layer().with_ansi(colours).boxed()
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Self { filter: (!fixed).then(|| Arc::new(handle)) }
    }

    /// Takes each new filter, for as long as there may be one.
    pub(crate) async fn follow(self, mut level: watch::Receiver<String>) {
        let Some(handle) = self.filter else { return };
        loop {
            let wanted = level.borrow_and_update().clone();
            match EnvFilter::try_new(&wanted) {
                Ok(filter) => drop(handle.reload(filter)),
                Err(error) => warn!(level = wanted, %error, "this is no filter; what was logged is logged"),
            }
            if level.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Of the observability worker: what is stored, or else its block.
fn settings(config: &Config) -> Value {
    let folder = config.block("configuration")["adapter"]["config"]["directory"].as_str().map(ToOwned::to_owned);
    let folder = folder.unwrap_or_else(|| "./data/configuration".to_owned());
    let stored = std::fs::read_to_string(Path::new(&folder).join(STORED)).ok();
    let stored = stored.and_then(|text| serde_saphyr::from_str::<Entry>(&text).ok());
    stored.map_or_else(|| config.block("iii-observability"), |entry| entry.value)
}
