//! `iii project generate-docker`: an image of the project, and what to run beside it.

use std::path::Path;

use uuid::Uuid;

use crate::Outcome;
use crate::arguments::GenerateDocker;
use crate::commands::engine::bin_dir;
use crate::commands::project_init::folder;
use crate::commands::project_template::read;
use crate::failure::Failure;
use crate::project::{Identity, write_once};

const DOCKERFILE: &str = include_str!("../../templates/Dockerfile");
const COMPOSE: &str = include_str!("../../templates/docker-compose.yml");

const MAX_FILE_BYTES: u64 = 1 << 20;

pub(crate) fn run(arguments: &GenerateDocker) -> Outcome {
    let folder = folder(arguments.directory.as_deref())?;
    if Identity::read(&folder)?.is_none() {
        eprintln!("warning: {} is no project yet", folder.display());
        eprintln!("hint: run `iii project init` first\n");
    }
    generate(&folder, arguments.template_dir.as_deref())?;
    Ok(0)
}

/// Writes what is absent.
pub(crate) fn generate(project: &Path, templates: Option<&Path>) -> Result<(), Failure> {
    let content = |name: &str, standard: &str| match templates {
        None => Ok(standard.as_bytes().to_vec()),
        Some(templates) => read(&templates.join("docker").join(name), MAX_FILE_BYTES),
    };
    let password = Uuid::new_v4().simple().to_string();
    let files = [
        ("Dockerfile", content("Dockerfile", DOCKERFILE)?, 0o644),
        ("docker-compose.yml", content("docker-compose.yml", COMPOSE)?, 0o644),
        (".env", environment(&bin_dir(), &password)?.into_bytes(), 0o600),
    ];
    for (name, content, mode) in files {
        let written = write_once(&project.join(name), &content, mode)?;
        eprintln!("{} {name}", if written { "Wrote" } else { "Kept " });
    }
    Ok(())
}

/// What docker-compose.yml takes from `.env`.
fn environment(programs: &Path, password: &str) -> Result<String, Failure> {
    let programs = programs.to_str().filter(|path| !path.contains(['\'', '\n', '\r'])).ok_or_else(|| {
        Failure::new(format!("the folder of programs, {}, cannot be written to .env", programs.display()))
            .hint("name another in III_BIN_DIR")
    })?;
    Ok(format!(
        "# Not for version control.\nRABBITMQ_USER=iii\nRABBITMQ_PASS={password}\n\n\
         # Where iii and iii-engine are, for the image.\nIII_PROGRAMS='{programs}'\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_compose_file_is_yaml_and_takes_its_secrets_from_the_environment() {
        let compose: Value = serde_saphyr::from_str(COMPOSE).unwrap();
        let environment = environment(Path::new("/a b"), "secret").unwrap();
        for name in ["RABBITMQ_USER", "RABBITMQ_PASS", "III_PROGRAMS"] {
            assert!(environment.contains(&format!("\n{name}=")), "{environment}");
            assert!(compose.to_string().contains(&format!("${{{name}")), "{name}");
        }
    }

    #[test]
    fn a_folder_that_ends_its_quotes_is_refused() {
        for folder in ["/a'b", "/a\nX=1"] {
            assert!(environment(Path::new(folder), "x").is_err());
        }
    }

    #[test]
    fn files_of_a_template_are_taken_instead() {
        let (project, templates) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(generate(project.path(), Some(templates.path())).is_err());
        std::fs::create_dir(templates.path().join("docker")).unwrap();
        for name in ["Dockerfile", "docker-compose.yml"] {
            std::fs::write(templates.path().join("docker").join(name), name).unwrap();
        }
        generate(project.path(), Some(templates.path())).unwrap();
        assert_eq!(std::fs::read_to_string(project.path().join("Dockerfile")).unwrap(), "Dockerfile");
    }
}
