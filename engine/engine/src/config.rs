//! `config.yaml`: environment variables expanded, parsed, checked.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use builtin_configuration::{Placeholder, replace_placeholders};
use engine_protocol::is_builtin;
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::listener::Listener;

/// The engine's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from.
    pub file: Option<PathBuf>,
    /// At least one; the first one's port is the engine's port.
    pub listeners: Vec<Listener>,
    /// Workers in our own process, in the order they are started.
    pub builtins: Vec<Entry>,
    /// Where in the file each worker's entry begins, for who has something to say of it.
    pub lines: BTreeMap<String, u64>,
    /// The block of `iii-sandbox`, when it is listed.
    pub sandbox: Option<Value>,
    /// Whether the worker daemon is started.
    pub worker_daemon: bool,
    /// What the VMs of workers run on.
    pub worker_vms: WorkerVms,
    /// What the file asks for and this version does not have.
    pub warnings: Vec<String>,
}

/// A built-in worker, and its block.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub name: String,
    pub config: Option<Value>,
}

/// Part of every engine, and started first: the others need their settings, and are to be seen from their start.
const MANDATORY: [&str; 2] = ["configuration", "iii-observability"];

/// Besides those, in the built-in configuration.
const STANDARD: [&str; 6] = ["iii-state", "iii-stream", "iii-queue", "iii-pubsub", "iii-cron", "iii-http"];

/// In our own process where they are listed.
const OPTIONAL: [&str; 3] = ["iii-http-functions", "iii-bridge", "iii-exec"];

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read configuration `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "line {line} of the configuration: environment variable `{name}` is not set, and no default is given for it"
    )]
    Variable { name: String, line: usize },
    #[error("configuration `{}` is not valid", path.display())]
    Parse { path: PathBuf, source: Box<serde_saphyr::Error> },
    #[error("line {line} of the configuration: worker `{worker}`: {problem}")]
    Worker { worker: String, line: u64, problem: String },
}

impl ConfigError {
    /// All of it, for a log: without the piece of the file that a terminal is shown.
    pub(crate) fn in_one_line(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("{self}: {source}"),
            Self::Parse { source, .. } => format!("{self}: {}", source.without_snippet()),
            Self::Variable { .. } | Self::Worker { .. } => self.to_string(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    workers: Option<Vec<RawEntry>>,
    /// Older name of the same list.
    modules: Option<Vec<RawEntry>>,
    /// Accepted for files of the original; there is one layout only.
    #[serde(rename = "rootfs")]
    _rootfs: Option<Value>,
}

#[derive(Deserialize)]
struct RawEntry {
    name: Spanned<String>,
    image: Option<String>,
    worker_path: Option<String>,
    config: Option<Value>,
}

/// The block of `iii-worker-ops`: names that the worker daemon knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerVms {
    pub driver: Option<String>,
    pub accel: Option<String>,
}

/// For an engine without a configuration file.
fn default_sandbox() -> Value {
    serde_json::json!({
        "auto_install": true, "image_allowlist": ["python", "node"], "default_idle_timeout_secs": 300,
        "max_concurrent_sandboxes": 32, "default_cpus": 1, "default_memory_mb": 512,
    })
}

impl Config {
    /// The built-in configuration.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            file: None,
            listeners: vec![standard_listener()],
            builtins: MANDATORY
                .iter()
                .chain(&STANDARD)
                .map(|name| Entry { name: (*name).to_owned(), config: None })
                .collect(),
            lines: BTreeMap::new(),
            sandbox: Some(default_sandbox()),
            worker_daemon: worker_daemon_wanted(),
            worker_vms: WorkerVms::default(),
            warnings: Vec::new(),
        }
    }

    /// # Errors
    /// [`ConfigError`], which names the file, variable or worker.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let expanded = expand(&text, |name| env::var(name).ok())?;
        Self::parse(path, &expanded)
    }

    /// The block of a built-in worker; `null` when there is none.
    pub(crate) fn block(&self, name: &str) -> Value {
        let entry = self.builtins.iter().find(|entry| entry.name == name);
        entry.and_then(|entry| entry.config.clone()).unwrap_or(Value::Null)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Option<RawConfig> = serde_saphyr::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let raw = raw.unwrap_or_default();
        let mut config = Self {
            file: Some(path.to_owned()),
            listeners: Vec::new(),
            builtins: Vec::new(),
            lines: BTreeMap::new(),
            sandbox: None,
            worker_daemon: worker_daemon_wanted(),
            worker_vms: WorkerVms::default(),
            warnings: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for entry in raw.workers.into_iter().chain(raw.modules).flatten() {
            let RawEntry { name, image, worker_path, config: block } = entry;
            let (name, line) = (name.value, name.referenced.line());
            let bad = |problem: String| ConfigError::Worker { worker: name.clone(), line, problem };
            let known = is_builtin(&name);
            let is_external = image.is_some() || worker_path.is_some();
            if known && image.is_some() {
                return Err(bad("a built-in worker has no image".into()));
            }
            if name != "iii-worker-manager" && !seen.insert(name.clone()) {
                return Err(bad("is listed twice".into()));
            }
            match name.as_str() {
                "iii-worker-manager" => config.listeners.push(Listener::parse(block.as_ref()).map_err(bad)?),
                "iii-sandbox" => config.sandbox = Some(block.unwrap_or_else(|| serde_json::json!({}))),
                "iii-worker-ops" => {
                    let block = block.unwrap_or_else(|| serde_json::json!({}));
                    let asked: WorkerVms = serde_json::from_value(block).map_err(|error| bad(error.to_string()))?;
                    config.worker_vms = asked;
                }
                // Ours too, as long as it is not somebody's worker of that name.
                "configuration" if !is_external => {
                    config.builtins.push(Entry { name: name.clone(), config: block });
                }
                ours if is_in_process(ours) => config.builtins.push(Entry { name: name.clone(), config: block }),
                _ if known => {}
                // The worker daemon reads these itself.
                _ if is_external => {}
                name => config
                    .warnings
                    .push(format!("worker `{name}` has neither `worker_path` nor `image`: its entry has no effect")),
            }
            config.lines.insert(name, line);
        }
        if config.listeners.is_empty() {
            config.listeners.push(standard_listener());
        }
        for name in MANDATORY {
            if !config.builtins.iter().any(|entry| entry.name == name) {
                config.builtins.push(Entry { name: name.to_owned(), config: None });
            }
        }
        let order = |entry: &Entry| MANDATORY.iter().position(|name| *name == entry.name).unwrap_or(MANDATORY.len());
        config.builtins.sort_by_key(order);
        Ok(config)
    }
}

fn standard_listener() -> Listener {
    Listener { host: "0.0.0.0".into(), port: 49134, middleware: None, rbac: None }
}

fn is_in_process(name: &str) -> bool {
    STANDARD.contains(&name) || OPTIONAL.contains(&name) || name == "iii-observability"
}

fn worker_daemon_wanted() -> bool {
    env::var_os("IIIWORKER_DISABLE_BUILTIN_DAEMONS").is_none()
}

/// The text with its variables' values.
fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
    replace_placeholders(text, |Placeholder { at, name, default, .. }| match (variable(name), default) {
        (Some(value), _) => Ok(Cow::Owned(value)),
        (None, Some("__III_ENGINE_VERSION__")) => Ok(Cow::Borrowed(crate::VERSION)),
        (None, Some(default)) => Ok(Cow::Borrowed(default)),
        (None, None) => {
            let line = 1 + text[..at].matches('\n').count();
            Err(ConfigError::Variable { name: name.to_owned(), line })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("config.yaml"), text)
    }

    #[test]
    fn variables_are_expanded_with_their_defaults() {
        let variable = |name: &str| (name == "PORT").then(|| "1234".to_owned());
        assert_eq!(expand("p: ${PORT:1} $X ${NO:a:b} ${E:} ${", variable).expect("expanded"), "p: 1234 $X a:b  ${");
        assert!(matches!(expand("${NO}", variable), Err(ConfigError::Variable { name, line: 1 }) if name == "NO"));
        assert!(matches!(expand("a\n${E:}\n${NO}", variable), Err(ConfigError::Variable { line: 3, .. })));
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        for text in ["", "workers:\n", "workers: []\n", "# nothing\n"] {
            let config = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error:?}"));
            assert_eq!(config.listeners, [standard_listener()], "{text:?}");
            assert!(config.sandbox.is_none());
        }
    }

    #[test]
    fn entries_become_listeners_daemons_and_warnings() {
        let config = parse(
            "workers:\n  - name: iii-worker-manager\n    config: {port: 1, host: 127.0.0.1}\n  - name: iii-sandbox\n    \
             config: {image_allowlist: [python]}\n  - name: iii-state\n  - name: mine\n    worker_path: /x\n",
        )
        .expect("a configuration");
        assert_eq!(config.listeners, [Listener { host: "127.0.0.1".into(), port: 1, ..standard_listener() }]);
        assert_eq!(config.sandbox, Some(serde_json::json!({ "image_allowlist": ["python"] })));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let names: Vec<&str> = config.builtins.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["configuration", "iii-observability", "iii-state"]);
    }

    #[test]
    fn only_built_in_workers_have_no_image() {
        let entry = |name: &str| format!("workers:\n  - name: {name}\n    image: ghcr.io/acme/{name}:1\n");
        for name in ["iii-scorer", "iii-", "iii-http-2", "scorer"] {
            let config = parse(&entry(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(config.warnings.len(), 0, "{name}");
        }
        for name in ["iii-sandbox", "iii-worker-manager", "iii-worker-ops", "iii-telemetry", "iii-exec"] {
            let error = parse(&entry(name)).expect_err(name);
            assert!(error.to_string().contains("has no image"), "{error}");
        }
    }

    #[test]
    fn what_workers_vms_run_on_is_passed_to_their_daemon() {
        let config = parse("workers:\n  - name: iii-worker-ops\n    config: {driver: libkrun}\n").expect("read");
        assert_eq!(config.worker_vms, WorkerVms { driver: Some("libkrun".to_owned()), accel: None });
        let error = parse("workers:\n  - name: iii-worker-ops\n    config: {drivr: qemu}\n").expect_err("a typo");
        assert!(error.to_string().contains("drivr"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("wrkers: []\n", "wrkers"),
            (
                "workers:\n  - name: a\n    image: x\n  - name: a\n    image: y\n",
                "line 4 of the configuration: worker `a`: is listed twice",
            ),
            ("workers:\n  - name: iii-http\n    image: x\n", "line 2 of the configuration: worker `iii-http`"),
            ("workers:\n  - name: iii-worker-manager\n    config: {prt: 1}\n", "prt"),
            ("workers:\n  - name: iii-worker-manager\n    config: {rbac: {x: 1}}\n", "x"),
        ] {
            let error = parse(text).expect_err(text);
            let mut said = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                said += &source.to_string();
            }
            assert!(said.contains(named), "{text:?}: {said}");
        }
    }
}
