//! Files of an archive take the place of programs, each as one step.
//!
//! Always true:
//! - A program is the old one or the new one, never a part of it, also after a crash.
//! - An archive decides neither where a file goes nor whose it is: only regular files with expected names are taken.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use tempfile::TempDir;

/// All that an archive may hold, unpacked.
const MAX_UNPACKED_BYTES: u64 = 4 << 30;

/// What is being installed, in the folder that it goes to: a rename does not leave a file system.
const STAGING: &str = ".iii-update";

const ARCHIVE: &str = "archive";

#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("could not write to {}: {source}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("the archive cannot be unpacked: {0}")]
    Unpack(#[source] io::Error),
    #[error("the archive holds no file `{0}`")]
    Incomplete(String),
    #[error("could not replace {}: {source}", path.display())]
    Replace { path: PathBuf, source: io::Error },
}

impl InstallError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Folder { folder, .. } => {
                Some(format!("nothing was replaced; run it as a user who may write to {}", folder.display()))
            }
            Self::Unpack(_) | Self::Incomplete(_) => {
                Some("nothing was replaced; tell whoever publishes the releases".into())
            }
            Self::Replace { .. } => Some("run the same command again: it replaces what is left".into()),
        }
    }
}

/// Room for one installation; whatever is left in it goes when this is dropped.
pub(crate) struct Staging {
    room: TempDir,
    folder: PathBuf,
}

impl Staging {
    /// Only one at a time for a folder: what an earlier one left behind is removed.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self, InstallError> {
        let make = || {
            fs::create_dir_all(folder)?;
            match fs::remove_dir_all(folder.join(STAGING)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            tempfile::Builder::new().prefix(STAGING).rand_bytes(0).tempdir_in(folder)
        };
        let room = make().map_err(|source| InstallError::Folder { folder: folder.to_owned(), source })?;
        Ok(Self { room, folder: folder.to_owned() })
    }

    /// Where the archive goes.
    pub(crate) fn archive(&self) -> Result<File, InstallError> {
        let made = File::options().read(true).write(true).create_new(true).open(self.room.path().join(ARCHIVE));
        made.map_err(|source| InstallError::Folder { folder: self.folder.clone(), source })
    }

    /// Unpacks `files` and puts them into the folder, in that order.
    pub(crate) fn install(self, mut archive: File, files: &[&str]) -> Result<(), InstallError> {
        let missing = archive
            .seek(SeekFrom::Start(0))
            .and_then(|_| unpack(&archive, files, self.room.path()))
            .map_err(InstallError::Unpack)?;
        if let Some(name) = missing.first() {
            return Err(InstallError::Incomplete((*name).to_owned()));
        }
        for name in files {
            let path = self.folder.join(name);
            fs::rename(self.room.path().join(name), &path).map_err(|source| InstallError::Replace { path, source })?;
        }
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| InstallError::Replace { path: self.folder.clone(), source })
    }
}

/// Writes those of `wanted` that the archive holds at its top, and returns the names of the others.
fn unpack<'a>(archive: impl Read, wanted: &[&'a str], into: &Path) -> io::Result<Vec<&'a str>> {
    let mut missing = wanted.to_vec();
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MAX_UNPACKED_BYTES));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        let Some(at) = missing.iter().position(|name| Path::new(name) == path) else { continue };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = missing.remove(at);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(into.join(name))?;
        io::copy(&mut entry, &mut file)?;
        // The mode above is less what the user's mask takes away.
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()?;
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;
    use tar::{EntryType, Header};

    fn entry(tar: &mut tar::Builder<impl Write>, name: &str, kind: EntryType, body: &str) {
        let mut header = Header::new_gnu();
        // Not by `set_path`, which refuses the names that matter here.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_size(body.len() as u64);
        if kind != EntryType::Regular {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        tar.append(&header, body.as_bytes()).unwrap();
    }

    fn archive(staging: &Staging, entries: &[(&str, EntryType, &str)]) -> File {
        let mut tar = tar::Builder::new(GzEncoder::new(staging.archive().unwrap(), Compression::fast()));
        for (name, kind, body) in entries {
            entry(&mut tar, name, *kind, body);
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn expected_files_replace_old_ones_and_nothing_else_appears() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "old").unwrap();
        fs::create_dir(folder.path().join(STAGING)).unwrap();
        let staging = Staging::in_folder(folder.path()).unwrap();
        let entries = [
            ("./a", EntryType::Regular, "new a"),
            ("../outside", EntryType::Regular, "x"),
            ("sub/b", EntryType::Regular, "not this one"),
            ("b", EntryType::Regular, "new b"),
            ("README", EntryType::Regular, "x"),
        ];
        let archive = archive(&staging, &entries);
        staging.install(archive, &["a", "b"]).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        for (name, body) in [("a", "new a"), ("b", "new b")] {
            let path = folder.path().join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), body);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        }
    }

    #[test]
    fn an_archive_without_a_file_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "old").unwrap();
        let lacking: [&[(&str, EntryType, &str)]; 3] = [
            &[("a", EntryType::Regular, "new")],
            &[("a", EntryType::Regular, "new"), ("b", EntryType::Symlink, "")],
            &[("a", EntryType::Regular, "new"), ("/b", EntryType::Regular, "")],
        ];
        for entries in lacking {
            let staging = Staging::in_folder(folder.path()).unwrap();
            let archive = archive(&staging, entries);
            let error = staging.install(archive, &["a", "b"]).unwrap_err();
            assert!(matches!(&error, InstallError::Incomplete(name) if name == "b"), "{error:?}");
            assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "old");
            assert!(!folder.path().join(STAGING).exists());
        }
    }

    #[test]
    fn what_is_no_archive_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::in_folder(folder.path()).unwrap();
        let mut file = staging.archive().unwrap();
        file.write_all(b"<html>").unwrap();
        assert!(matches!(staging.install(file, &["a"]), Err(InstallError::Unpack(_))));
    }
}
