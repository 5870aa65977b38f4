//! What a worker's VM is made of: from an entry of config.yaml to a boot request and a command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use daemon_api::WorkerError;
use guest_protocol::SuperviseRequest;
use oci::ImageConfig;

use crate::machine::BootError;
use crate::machine::{BootRequest, GATEWAY, Network, Scratch, Watch as Progress};
use crate::worker::disk;
use crate::worker::environment;
use crate::worker::host::Host;
use crate::worker::manifest::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB};
use crate::worker::project::{self, Plan};
use crate::worker::provision;
use crate::worker::store::{Entry, EntrySource};

/// Between SIGTERM and SIGKILL of a worker's process.
const GRACE_MS: u64 = 2000;

/// What is to run.
pub(crate) enum Job {
    Local { folder: PathBuf, plan: Plan },
    Image { reference: String },
}

/// Where the guest finds the engine.
fn engine_url(port: u16) -> String {
    format!("ws://{GATEWAY}:{port}")
}

impl Job {
    /// Reads the manifest again: the folder may have changed since the worker was added.
    pub(crate) fn of(entry: &Entry) -> Result<Self, WorkerError> {
        match &entry.source {
            EntrySource::Image(reference) => Ok(Self::Image { reference: reference.clone() }),
            EntrySource::Builtin => Err(WorkerError::NotFound { name: entry.name.clone() }),
            EntrySource::Local(folder) => {
                let (plan, verdict) = project::read(folder);
                let plan = plan.ok_or_else(|| WorkerError::Spawn {
                    worker: entry.name.clone(),
                    step: "manifest".into(),
                    reason: verdict.errors.join("; "),
                    exit_code: None,
                    last_words: Vec::new(),
                })?;
                Ok(Self::Local { folder: folder.clone(), plan })
            }
        }
    }

    pub(crate) fn local(&self) -> Option<(&Path, &Plan)> {
        match self {
            Self::Local { folder, plan } => Some((folder, plan)),
            Self::Image { .. } => None,
        }
    }

    fn image(&self) -> &str {
        match self {
            Self::Local { plan, .. } => &plan.image,
            Self::Image { reference } => reference,
        }
    }

    /// Gets the image, and a disk that belongs to it.
    pub(crate) async fn boot_request(
        &self,
        host: &Host,
        entry: &Entry,
        progress: Progress<'_>,
    ) -> Result<BootRequest, WorkerError> {
        let bad = |message: String| WorkerError::OciPull { reference: self.image().to_owned(), message };
        let image = host.machines.resolve(self.image()).map_err(|error| bad(error.to_string()))?;
        let rootfs = host.machines.image(&image, progress).await.map_err(|error| bad(error.explain()))?;
        let folder = host.folder(&entry.name);
        let disk = disk::keep(&folder, &rootfs.digest.to_string()).map_err(|error| WorkerError::Spawn {
            worker: entry.name.clone(),
            step: "vm".into(),
            reason: format!("could not prepare {}: {error}", folder.display()),
            exit_code: None,
            last_words: Vec::new(),
        })?;
        let (cpus, memory_mib) = match self {
            Self::Local { plan, .. } => (plan.cpus, plan.memory_mib),
            Self::Image { .. } => (DEFAULT_CPUS, DEFAULT_MEMORY_MIB),
        };
        Ok(BootRequest {
            name: format!("worker-{}", entry.name),
            image,
            memory_mib,
            vcpus: cpus,
            network: Network::Open { worker: Some(entry.name.clone()) },
            env: self.environment(host, entry)?,
            scratch: Scratch::Persistent(disk),
            hostname: hostname(&entry.name),
        })
    }

    /// Manifest, then config.yaml, then what is ours to say.
    fn environment(&self, host: &Host, entry: &Entry) -> Result<BTreeMap<String, String>, WorkerError> {
        let mut env = match self {
            Self::Local { plan, .. } => plan.env.clone(),
            Self::Image { .. } => BTreeMap::new(),
        };
        let block = environment::of_block(&entry.config).map_err(|reason| WorkerError::Spawn {
            worker: entry.name.clone(),
            step: "config".into(),
            reason,
            exit_code: None,
            last_words: Vec::new(),
        })?;
        env.extend(block);
        let url = engine_url(host.engine_port);
        for (name, value) in [
            ("III_URL", url.as_str()),
            ("III_ENGINE_URL", url.as_str()),
            ("III_WORKER_NAME", entry.name.as_str()),
            ("III_ISOLATION", "microvm"),
        ] {
            env.insert(name.to_owned(), value.to_owned());
        }
        Ok(env)
    }

    /// The process to keep running.
    pub(crate) fn command(&self, image: &ImageConfig, engine_port: u16) -> Result<SuperviseRequest, WorkerError> {
        let mut request = SuperviseRequest { grace_ms: GRACE_MS, ..SuperviseRequest::default() };
        match self {
            Self::Local { plan, .. } => {
                // `exec`, so that the process that gets signals is the worker, not a shell that waits for it.
                request.command =
                    if is_simple(&plan.start) { format!("exec {}", plan.start) } else { plan.start.clone() };
                request.workdir = Some(provision::ROOT.to_owned());
            }
            Self::Image { reference } => {
                request.argv = [image.entrypoint.as_slice(), image.cmd.as_slice()].concat();
                if request.argv.is_empty() {
                    let message = "it names no command to run, so it cannot be a worker".to_owned();
                    return Err(WorkerError::OciPull { reference: reference.clone(), message });
                }
                if let Some(at) = request.argv.iter().position(|word| word == "--url") {
                    request.argv.drain(at..(at + 2).min(request.argv.len()));
                }
                request.argv.extend(["--url".to_owned(), engine_url(engine_port)]);
            }
        }
        Ok(request)
    }

    pub(crate) fn boot_error(&self, worker: &str, error: &BootError) -> WorkerError {
        match error {
            BootError::Image { .. } => {
                WorkerError::OciPull { reference: self.image().to_owned(), message: error.explain() }
            }
            _ => WorkerError::Spawn {
                worker: worker.to_owned(),
                step: "vm".into(),
                reason: error.explain(),
                exit_code: None,
                last_words: Vec::new(),
            },
        }
    }
}

/// A command without anything that a shell would have to do after starting it.
fn is_simple(command: &str) -> bool {
    let first = command.split_whitespace().next().unwrap_or("");
    !command.contains([';', '&', '|', '\n', '(', '{', '<', '>', '`'])
        && !first.contains('=')
        && first != "exec"
        && !first.is_empty()
}

/// A worker's name as a host name: letters, digits and dashes, at most 63.
fn hostname(worker: &str) -> String {
    let name: String = worker.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "worker".into() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_command_becomes_the_process_itself() {
        for (command, simple) in [
            ("python3 a.py", true),
            ("A=1 python3 a.py", false),
            ("a && b", false),
            ("exec a", false),
            ("cd x; a", false),
        ] {
            assert_eq!(is_simple(command), simple, "{command}");
        }
    }

    #[test]
    fn an_images_command_is_told_where_the_engine_is() {
        let image = ImageConfig {
            entrypoint: vec!["/w".into(), "--url".into(), "ws://x".into()],
            cmd: vec!["-v".into()],
            ..ImageConfig::default()
        };
        let job = Job::Image { reference: "r".into() };
        assert_eq!(job.command(&image, 7).expect("a command").argv, ["/w", "-v", "--url", "ws://100.96.0.1:7"]);
        assert!(job.command(&ImageConfig::default(), 7).is_err());
    }
}
