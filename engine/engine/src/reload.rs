//! config.yaml while the engine runs: read anew when it was saved, and compared.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use builtin_configuration::FolderWatch;
use tracing::warn;

use crate::config::{Config, Entry};

/// What became of the file.
pub(crate) enum Reload {
    Config(Box<Config>),
    /// It cannot be used, and why.
    Broken(String),
}

/// A file that is watched.
pub(crate) struct Changes {
    path: PathBuf,
    watch: FolderWatch,
}

/// Watches the folder of `path`: editors replace files.
pub(crate) fn watch(path: &Path) -> Option<Changes> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(OsStr::to_owned);
    match FolderWatch::begin(folder, move |path| path.file_name() == name.as_deref()) {
        Ok(watch) => Some(Changes { path: path.to_owned(), watch }),
        Err(error) => {
            warn!(file = %path.display(), %error, "the configuration is not watched");
            None
        }
    }
}

/// Waits for the next change; for ever when nothing is watched.
pub(crate) async fn next(changes: &mut Option<Changes>) -> Reload {
    let Some(changes) = changes else { return std::future::pending().await };
    changes.watch.settled().await;
    match Config::load(&changes.path) {
        Ok(config) => Reload::Config(Box::new(config)),
        Err(error) => Reload::Broken(error.in_one_line()),
    }
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
