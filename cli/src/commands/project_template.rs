//! A template of a project: a folder whose files are copied, and what it asks for.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use semver::{Version, VersionReq};
use serde::Deserialize;

use crate::clean::line;
use crate::failure::Failure;
use crate::project::write_once;

/// What a template says of itself; not copied.
const DESCRIPTION: &str = "template.json";

const MAX_DESCRIPTION_BYTES: u64 = 64 << 10;

/// Larger files are no part of a template.
const MAX_FILE_BYTES: u64 = 16 << 20;

#[derive(Default, Deserialize)]
struct Description {
    /// Versions of `iii` that it is for, such as `>=0.19, <0.21`.
    iii: Option<VersionReq>,
}

/// A template that is for this version.
pub(crate) struct Template(PathBuf);

impl Template {
    pub(crate) fn open(templates: &Path, name: &str, any_version: bool) -> Result<Self, Failure> {
        let folder = templates.join(name);
        if !is_name(name) || !folder.is_dir() {
            let names = names(templates)?;
            let names = if names.is_empty() { "no templates".to_owned() } else { names.join(", ") };
            return Err(Failure::new(format!("there is no template `{}`", line(name)))
                .hint(format!("{} holds {names}", templates.display())));
        }
        let template = Self(folder);
        let ours = Version::parse(env!("CARGO_PKG_VERSION")).ok();
        match template.description()?.iii {
            Some(wanted) if !any_version && !ours.is_some_and(|ours| wanted.matches(&ours)) => Err(Failure::new(
                format!("template `{name}` is for iii {wanted}, and this is {}", env!("CARGO_PKG_VERSION")),
            )
            .hint("pass --skip-iii to take it nevertheless")),
            _ => Ok(template),
        }
    }

    fn description(&self) -> Result<Description, Failure> {
        let path = self.0.join(DESCRIPTION);
        if !path.exists() {
            return Ok(Description::default());
        }
        let text = read(&path, MAX_DESCRIPTION_BYTES)?;
        serde_json::from_slice(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    }

    /// Copies what is not there yet. Links are refused: what they show would not be the template's.
    pub(crate) fn copy_into(&self, project: &Path) -> Result<(), Failure> {
        let failed = |path: &Path, error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let from = self.0.join(&folder);
            for entry in fs::read_dir(&from).map_err(|error| failed(&from, error))? {
                let entry = entry.map_err(|error| failed(&from, error))?;
                let path = folder.join(entry.file_name());
                if path == Path::new(DESCRIPTION) {
                    continue;
                }
                let metadata = entry.metadata().map_err(|error| failed(&entry.path(), error))?;
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() {
                    let mode = metadata.permissions().mode() & 0o777;
                    write_once(&project.join(&path), &read(&entry.path(), MAX_FILE_BYTES)?, mode)?;
                } else {
                    return Err(Failure::new(format!("{} is no regular file", entry.path().display())));
                }
            }
        }
        Ok(())
    }
}

/// A whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut content));
    read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    if content.len() as u64 > limit {
        return Err(Failure::new(format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(content)
}

/// One part of a path, and no hidden one.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn names(templates: &Path) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(templates).map_err(|error| Failure::new(format!("{}: {error}", templates.display())))?;
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_name(name));
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(files: &[(&str, &str)]) -> tempfile::TempDir {
        let templates = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = templates.path().join("shop").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        templates
    }

    #[test]
    fn a_templates_files_are_copied_and_those_that_are_there_stay() {
        let templates = template(&[("config.yaml", "workers: []"), ("a/b.py", "print()"), ("template.json", "{}")]);
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join("config.yaml"), "mine").unwrap();
        Template::open(templates.path(), "shop", false).unwrap().copy_into(project.path()).unwrap();
        assert_eq!(fs::read_to_string(project.path().join("a/b.py")).unwrap(), "print()");
        assert_eq!(fs::read_to_string(project.path().join("config.yaml")).unwrap(), "mine");
        assert!(!project.path().join("template.json").exists());
    }

    #[test]
    fn a_template_for_another_version_needs_consent() {
        let templates = template(&[("template.json", r#"{"iii":">=99"}"#)]);
        assert!(Template::open(templates.path(), "shop", false).is_err());
        assert!(Template::open(templates.path(), "shop", true).is_ok());
    }

    #[test]
    fn a_template_is_a_folder_of_templates() {
        let templates = template(&[("a", "")]);
        for name in ["", ".", "..", "../x", "nope", "shop/a"] {
            let failure = Template::open(templates.path(), name, false).err().unwrap_or_else(|| panic!("{name}"));
            assert!(format!("{failure:?}").contains("holds shop"), "{failure:?}");
        }
    }

    #[test]
    fn a_link_in_a_template_is_refused() {
        let templates = template(&[("a", "")]);
        std::os::unix::fs::symlink("/etc/passwd", templates.path().join("shop/b")).unwrap();
        let project = tempfile::tempdir().unwrap();
        assert!(Template::open(templates.path(), "shop", false).unwrap().copy_into(project.path()).is_err());
        assert!(!project.path().join("b").exists());
    }
}
