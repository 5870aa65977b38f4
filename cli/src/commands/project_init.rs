//! `iii project init`: a folder becomes a project.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::arguments::Init;
use crate::clean::line;
use crate::commands::project_docker;
use crate::commands::project_template::Template;
use crate::failure::Failure;
use crate::project::{Identity, ProjectError, write_once};

const CONFIG: &str = include_str!("../../templates/config.yaml");
const IGNORED: &str = include_str!("../../templates/gitignore");

impl From<ProjectError> for Failure {
    fn from(error: ProjectError) -> Self {
        Self::new(error.to_string()).hint_if(error.hint())
    }
}

pub(crate) fn run(arguments: &Init) -> Outcome {
    let given = arguments.directory.as_ref().or(arguments.name.as_ref());
    let folder = folder(given.map(PathBuf::as_path))?;
    let template = match (&arguments.template, &arguments.template_dir) {
        (Some(name), Some(templates)) => Some(Template::open(templates, name, arguments.skip_iii)?),
        _ => None,
    };
    let known = Identity::read(&folder)?;
    if known.is_none() && !arguments.allow_non_empty {
        must_be_empty(&folder)?;
    }
    let identity = match known {
        Some(identity) => {
            eprintln!("{} is a project already ({}); what is missing is added", folder.display(), line(identity.id()));
            identity
        }
        None => {
            let identity = Identity::of_folder(&folder)?;
            identity.write(&folder)?;
            eprintln!("Made project {} in {}", line(identity.name()), folder.display());
            identity
        }
    };
    if let Some(template) = &template {
        template.copy_into(&folder)?;
    }
    for (name, content) in [("config.yaml", CONFIG), (".gitignore", IGNORED)] {
        write_once(&folder.join(name), content.as_bytes(), 0o644)?;
    }
    if arguments.docker {
        project_docker::generate(&folder, arguments.template_dir.as_deref())?;
    }
    next_steps(given.map(PathBuf::as_path), identity.name());
    Ok(0)
}

/// Absolute, and made if it is absent.
pub(crate) fn folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let given = given.unwrap_or(Path::new("."));
    let make = || {
        fs::create_dir_all(given)?;
        given.canonicalize()
    };
    make().map_err(|error: io::Error| Failure::new(format!("{}: {error}", given.display())))
}

/// Files that begin with a dot do not count.
fn must_be_empty(folder: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(folder).map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.find(|name| !name.starts_with('.')) {
        None => Ok(()),
        Some(name) => Err(Failure::new(format!("{} is not empty: it holds `{}`", folder.display(), line(&name)))
            .hint("choose another folder, or pass --allow-non-empty: files that are there are kept")),
    }
}

fn next_steps(given: Option<&Path>, name: &str) {
    eprintln!("\nNext:");
    if let Some(folder) = given.filter(|folder| *folder != Path::new(".")) {
        eprintln!("  cd {}", folder.display());
    }
    eprintln!("  iii                              # starts the engine of {}", line(name));
    eprintln!("  iii worker add ./my-worker       # in another terminal: adds a worker from a folder");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_configuration_is_yaml_with_built_in_workers() {
        let config: serde_json::Value = serde_saphyr::from_str(CONFIG).unwrap();
        let names: Vec<&str> =
            config["workers"].as_array().unwrap().iter().filter_map(|worker| worker["name"].as_str()).collect();
        assert!(names.contains(&"iii-worker-manager") && names.contains(&"iii-http"), "{names:?}");
    }

    #[test]
    fn only_files_without_a_dot_make_a_folder_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".git")).unwrap();
        assert!(must_be_empty(folder.path()).is_ok());
        fs::write(folder.path().join("a"), "").unwrap();
        assert!(must_be_empty(folder.path()).is_err());
    }
}
