//! A project's folder: who it is, and files that are written once.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Where a project's identity is, from its folder.
const IDENTITY: &str = ".iii/project.ini";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectError {
    #[error("could not read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} names no project_id", path.display())]
    NoId { path: PathBuf },
    #[error("the name of {} cannot be a project's: it is empty, no Unicode, or has line breaks", folder.display())]
    Name { folder: PathBuf },
}

impl ProjectError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoId { .. } => {
                Some(format!("add the line `project_id={}`, or delete the file: it is made anew", Uuid::new_v4()))
            }
            Self::Name { .. } => Some("rename the folder, or choose another with --directory".into()),
            Self::Read { .. } | Self::Write { .. } => None,
        }
    }
}

/// Who a project is.
#[derive(Debug, PartialEq)]
pub(crate) struct Identity {
    id: String,
    name: String,
}

impl Identity {
    /// A new one, called after its folder.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self, ProjectError> {
        let name = folder.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains(['\n', '\r']));
        let name = name.ok_or_else(|| ProjectError::Name { folder: folder.to_owned() })?;
        Ok(Self { id: Uuid::new_v4().to_string(), name: name.to_owned() })
    }

    /// The one a folder has.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, ProjectError> {
        let path = folder.join(IDENTITY);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ProjectError::Read { path, source }),
        };
        let id = value(&text, "project_id").ok_or(ProjectError::NoId { path })?;
        let name = value(&text, "project_name").unwrap_or_default();
        Ok(Some(Self { id: id.to_owned(), name: name.to_owned() }))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), ProjectError> {
        let Self { id, name } = self;
        let text = format!("[project]\nproject_id={id}\nproject_name={name}\nsource=init\n");
        write_once(&folder.join(IDENTITY), text.as_bytes(), 0o644).map(drop)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// The value of a key of the section `project`, or of none; the first of several.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut ours = true;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            ours = line == "[project]";
        } else if let Some((name, value)) = line.split_once('=')
            && ours
            && name.trim() == key
        {
            return Some(value.trim()).filter(|value| !value.is_empty());
        }
    }
    None
}

/// Writes a file, whole, where there is none. Tells whether it was written.
pub(crate) fn write_once(path: &Path, content: &[u8], mode: u32) -> Result<bool, ProjectError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        if path.symlink_metadata().is_ok() {
            return Ok(false);
        }
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error),
        }
    };
    write().map_err(|source| ProjectError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_with_and_without_its_section() {
        for text in [
            "[project]\nproject_id=1-2\nproject_name=shop\n",
            "project_id = 1-2 \r\nproject_name=shop\r\n",
            "# mine\n[other]\nproject_id=no\n[project]\nproject_name=shop\ndevice_id=x\nproject_id=1-2\n",
        ] {
            assert_eq!((value(text, "project_id"), value(text, "project_name")), (Some("1-2"), Some("shop")), "{text}");
        }
        for text in ["", "project_id", "project_id=", "[other]\nproject_id=1"] {
            assert_eq!(value(text, "project_id"), None, "{text}");
        }
    }

    #[test]
    fn an_identity_is_kept_once_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(folder.path()).unwrap(), None);
        let first = Identity::of_folder(&folder.path().join("shop")).unwrap();
        first.write(folder.path()).unwrap();
        Identity::of_folder(folder.path()).unwrap().write(folder.path()).unwrap();
        assert_eq!(Identity::read(folder.path()).unwrap(), Some(first));
        fs::write(folder.path().join(IDENTITY), "project_name=x\n").unwrap();
        let error = Identity::read(folder.path()).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("project_id=")));
    }

    #[test]
    fn a_line_break_is_no_part_of_a_name() {
        for folder in ["/", "/a\nproject_id=1", "/a\rb"] {
            assert!(matches!(Identity::of_folder(Path::new(folder)), Err(ProjectError::Name { .. })), "{folder:?}");
        }
    }

    #[test]
    fn a_file_is_written_once_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        assert!(write_once(&path, b"first", 0o600).unwrap());
        assert!(!write_once(&path, b"second", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert!(!write_once(&link, b"x", 0o644).unwrap(), "a link is a file that is there");
    }
}
