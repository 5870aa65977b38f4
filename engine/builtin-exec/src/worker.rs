//! The worker: one pipeline.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use engine_builtin::{BoxFuture, Builtin, BuiltinError, Engine, Settings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::glob::Globs;
use crate::pipeline::Pipeline;
use crate::settings::{Wanted, wanted};
use crate::watch::Watch;

/// As in config.yaml.
pub const NAME: &str = "iii-exec";

/// Commands run in the engine's folder.
///
/// # Errors
/// Settings that do not fit.
pub async fn create(_engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    let folder =
        env::current_dir().map_err(|error| BuiltinError::failed("could not find the working directory", error))?;
    Ok(Arc::new(Exec::new(settings, folder)?))
}

struct Exec {
    wanted: Wanted,
    folder: PathBuf,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exec {
    fn new(settings: Settings, folder: PathBuf) -> Result<Self, BuiltinError> {
        let exec = Self { wanted: wanted(settings)?, folder, stop: CancellationToken::new(), task: Mutex::default() };
        exec.globs()?;
        Ok(exec)
    }

    fn globs(&self) -> Result<Option<Globs>, BuiltinError> {
        let patterns = self.wanted.watch.as_deref().unwrap_or_default();
        if patterns.is_empty() {
            return Ok(None);
        }
        let bad = |error: globset::Error| BuiltinError::Settings(format!("watch: {error}"));
        Globs::new(patterns, &self.folder).map(Some).map_err(bad)
    }

    fn begin(&self) -> Result<(), BuiltinError> {
        let watch = match self.globs()? {
            Some(globs) => Some(
                Watch::begin(globs, &self.folder)
                    .map_err(|error| BuiltinError::failed("could not follow the files of `watch`", error))?,
            ),
            None => None,
        };
        let pipeline = Pipeline { commands: self.wanted.exec.clone(), folder: self.folder.clone(), watch };
        let task = tokio::spawn(pipeline.keep(self.stop.clone()));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(())
    }
}

impl Builtin for Exec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        Box::pin(async { self.begin() })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stop.cancel();
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                let _ = task.await;
            }
        })
    }
}

#[cfg(test)]
mod tests;
