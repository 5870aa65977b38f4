//! What `worker::add` was asked for: a folder, an image or a name, understood before anything is written.

use std::path::Path;

use daemon_api::WorkerError;
use daemon_api::worker::Source;
use engine_protocol::is_builtin;
use serde_json::{Value, json};

use crate::worker::manifest::check_name;
use crate::worker::project;
use crate::worker::store::EntrySource;

/// A source that was understood.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) source: EntrySource,
    pub(crate) image: Option<String>,
    pub(crate) warnings: Vec<String>,
    /// What a new entry says besides its name.
    pub(crate) config: Value,
}

impl Wanted {
    /// What is meant by `source`, seen from the project's folder.
    pub(crate) fn of(source: &Source, root: &Path) -> Result<Self, WorkerError> {
        match source {
            Source::Local { path } => Self::local(path, root),
            Source::Oci { reference } => {
                let name = oci_name(reference);
                valid(&name)?;
                not_builtin(&name)?;
                Ok(Wanted {
                    name,
                    source: EntrySource::Image(reference.clone()),
                    image: Some(reference.clone()),
                    warnings: Vec::new(),
                    config: Value::Null,
                })
            }
            Source::Registry { name, .. } if is_builtin(name) => {
                let warnings = vec![format!("`{name}` is part of the engine, which starts it now")];
                // Without a list of images there are no sandboxes.
                let config = match name.as_str() {
                    "iii-sandbox" => json!({ "image_allowlist": ["python", "node"] }),
                    _ => Value::Null,
                };
                Ok(Wanted { name: name.clone(), source: EntrySource::Builtin, image: None, warnings, config })
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
        not_builtin(&plan.name)?;
        Ok(Wanted {
            name: plan.name,
            source: EntrySource::Local(folder),
            image: Some(plan.image),
            warnings: verdict.warnings,
            config: Value::Null,
        })
    }
}

fn not_builtin(name: &str) -> Result<(), WorkerError> {
    if is_builtin(name) {
        let reason = "it is the name of a built-in worker".into();
        return Err(WorkerError::InvalidName { name: name.to_owned(), reason });
    }
    Ok(())
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
