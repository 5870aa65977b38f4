//! What `worker::add` was asked for: a folder, an image or a name, understood before anything is written.

use std::path::Path;

use daemon_api::WorkerError;
use daemon_api::worker::Source;

use crate::worker::manifest::check_name;
use crate::worker::project;
use crate::worker::store::EntrySource;

/// Names of workers that are part of an engine: they need no VM.
const BUILTINS: [&str; 14] = [
    "iii-http",
    "iii-stream",
    "iii-state",
    "iii-queue",
    "iii-pubsub",
    "iii-cron",
    "iii-observability",
    "iii-sandbox",
    "iii-exec",
    "iii-bridge",
    "iii-worker-manager",
    "iii-telemetry",
    "iii-engine-functions",
    "iii-http-functions",
];

/// A source that was understood.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) source: EntrySource,
    pub(crate) image: Option<String>,
    pub(crate) warnings: Vec<String>,
}

impl Wanted {
    /// What is meant by `source`, seen from the project's folder.
    pub(crate) fn of(source: &Source, root: &Path) -> Result<Self, WorkerError> {
        match source {
            Source::Local { path } => Self::local(path, root),
            Source::Oci { reference } => {
                let name = oci_name(reference);
                valid(&name)?;
                let image = Some(reference.clone());
                Ok(Wanted { name, source: EntrySource::Image(reference.clone()), image, warnings: Vec::new() })
            }
            Source::Registry { name, .. } if BUILTINS.contains(&name.as_str()) => {
                let warnings =
                    vec![format!("`{name}` is part of the engine: restart the engine for it to take effect")];
                Ok(Wanted { name: name.clone(), source: EntrySource::Builtin, image: None, warnings })
            }
            Source::Registry { name, .. } => {
                valid(name)?;
                let message = format!(
                    "`{name}` is no built-in worker, and the public registry of workers is not part of this version: add a folder or an image"
                );
                Err(WorkerError::Registry { message })
            }
        }
    }

    fn local(path: &Path, root: &Path) -> Result<Wanted, WorkerError> {
        let path = match path.strip_prefix("~") {
            Ok(rest) => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(rest),
            Err(_) => root.join(path),
        };
        let bad = |reason: String| WorkerError::BadRequest { function_id: "worker::add".into(), reason };
        let folder = path.canonicalize().map_err(|error| bad(format!("{}: {error}", path.display())))?;
        let (plan, verdict) = project::read(&folder);
        let plan = plan.ok_or_else(|| bad(verdict.errors.join("; ")))?;
        if plan.name.starts_with("iii-") && BUILTINS.contains(&plan.name.as_str()) {
            let reason = "it is the name of a built-in worker".to_owned();
            return Err(WorkerError::InvalidName { name: plan.name, reason });
        }
        Ok(Wanted {
            name: plan.name,
            source: EntrySource::Local(folder),
            image: Some(plan.image),
            warnings: verdict.warnings,
        })
    }
}

/// # Errors
/// [`WorkerError::InvalidName`]
pub(crate) fn valid(name: &str) -> Result<(), WorkerError> {
    check_name(name).map_err(|reason| WorkerError::InvalidName { name: name.to_owned(), reason })
}

/// The last part of a reference's path, without tag and digest.
fn oci_name(reference: &str) -> String {
    let reference = reference.split('@').next().unwrap_or(reference);
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split(':').next().unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_worker_is_called_after_its_last_part() {
        for (reference, name) in [
            ("ghcr.io/acme/scorer:2", "scorer"),
            ("localhost:5000/scorer", "scorer"),
            ("a/b@sha256:0123", "b"),
            ("a/b:1@sha256:0123", "b"),
        ] {
            assert_eq!(oci_name(reference), name);
        }
    }
}
