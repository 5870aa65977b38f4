//! config.yaml while the engine runs: read anew when it was saved, and compared.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

use crate::config::{Config, Entry};

/// A file that was quiet for this long has been saved.
const QUIET: Duration = Duration::from_millis(500);

/// What became of the file.
pub(crate) enum Reload {
    Config(Box<Config>),
    /// It cannot be used, and why.
    Broken(String),
}

/// A file that is watched.
pub(crate) struct Changes {
    path: PathBuf,
    settled: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

/// Watches the folder of `path`: editors replace files.
pub(crate) fn watch(path: &Path) -> Option<Changes> {
    let complain = |error: notify::Error| warn!(file = %path.display(), %error, "the configuration is not watched");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (touched, mut touches) = mpsc::channel(1);
    let name = path.file_name().map(OsStr::to_owned);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let ours = |event: &notify::Event| {
            !event.kind.is_access() && event.paths.iter().any(|path| path.file_name() == name.as_deref())
        };
        if event.is_ok_and(|event| ours(&event)) {
            let _ = touched.try_send(());
        }
    });
    let mut watcher = watcher.map_err(complain).ok()?;
    watcher.watch(folder, RecursiveMode::NonRecursive).map_err(complain).ok()?;
    let (settle, settled) = mpsc::channel(1);
    tokio::spawn(async move {
        while touches.recv().await.is_some() {
            while let Ok(Some(())) = tokio::time::timeout(QUIET, touches.recv()).await {}
            if settle.send(()).await.is_err() {
                return;
            }
        }
    });
    Some(Changes { path: path.to_owned(), settled, _watcher: watcher })
}

/// Waits for the next change; for ever when nothing is watched.
pub(crate) async fn next(changes: &mut Option<Changes>) -> Option<Reload> {
    let Some(changes) = changes else { return std::future::pending().await };
    if changes.settled.recv().await.is_none() {
        return std::future::pending().await;
    }
    Some(match Config::load(&changes.path) {
        Ok(config) => Reload::Config(Box::new(config)),
        Err(error) => Reload::Broken(error.in_one_line()),
    })
}

/// What is to be done to built-in workers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) removed: Vec<Entry>,
    pub(crate) changed: Vec<Entry>,
    pub(crate) added: Vec<Entry>,
}

/// From what runs to what is wanted.
pub(crate) fn plan(now: &[Entry], wanted: &[Entry]) -> Plan {
    let in_list = |list: &[Entry], name: &str| list.iter().find(|entry| entry.name == name).cloned();
    let mut plan = Plan::default();
    for entry in wanted {
        match in_list(now, &entry.name) {
            Some(running) if running == *entry => {}
            Some(_) => plan.changed.push(entry.clone()),
            None => plan.added.push(entry.clone()),
        }
    }
    plan.removed = now.iter().filter(|entry| in_list(wanted, &entry.name).is_none()).cloned().collect();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_touched() {
        let entry = |name: &str, config: serde_json::Value| Entry { name: name.into(), config: Some(config) };
        let now = [entry("a", json!(1)), entry("b", json!({ "x": 1, "y": 2 })), entry("c", json!(1))];
        let wanted = [entry("b", json!({ "y": 2, "x": 1 })), entry("c", json!(2)), entry("d", json!(1))];
        let plan = plan(&now, &wanted);
        assert_eq!(plan.removed, [entry("a", json!(1))]);
        assert_eq!(plan.changed, [entry("c", json!(2))]);
        assert_eq!(plan.added, [entry("d", json!(1))]);
    }
}
