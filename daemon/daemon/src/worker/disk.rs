//! What is kept of a project's workers on the host: one folder each, with the disk, and who may take it away.
//!
//! ```text
//! <home>/workers/<project>/<worker>/scratch.ext4   locked while a VM has it
//!                                   image          the digest it belongs to
//!                                   stopped        the engine under which it was stopped by hand
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

const DISK: &str = "scratch.ext4";
const IMAGE: &str = "image";

/// A project's folder below the home: two projects may have workers of one name.
pub(crate) fn project_key(root: &Path) -> String {
    let name: String = root
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(32)
        .collect();
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{digits}")
}

/// The disk of the worker in `folder`. What was written over another image than `image` is thrown away: over this one
/// it would make no sense.
///
/// # Errors
/// What the host's file system says; `ResourceBusy` when a VM has the disk.
pub(crate) fn keep(folder: &Path, image: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let (disk, mark) = (folder.join(DISK), folder.join(IMAGE));
    if fs::read_to_string(&mark).is_ok_and(|before| before == image) {
        return Ok(disk);
    }
    if let Some(lock) = lock(&disk)? {
        fs::remove_file(&disk)?;
        drop(lock);
    }
    fs::write(mark, image)?;
    Ok(disk)
}

/// Removes all that is kept in `folder`, and returns how many bytes that were.
///
/// # Errors
/// As [`keep`].
pub(crate) fn wipe(folder: &Path) -> io::Result<u64> {
    // Held until it is gone: another engine may be about to boot from it.
    let _lock = lock(&folder.join(DISK))?;
    let bytes = size(folder);
    match fs::remove_dir_all(folder) {
        Ok(()) => {
            // The project's folder, if this was its last worker.
            let _ = folder.parent().map(fs::remove_dir);
            Ok(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// `None` when there is no disk.
fn lock(disk: &Path) -> io::Result<Option<Flock<File>>> {
    let file = match File::open(disk) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "its disk is in use by a VM of another engine")),
    }
}

/// Bytes on the host's disk, holes not counted.
pub(crate) fn size(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = || fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum::<u64>();
    if metadata.is_dir() { below() } else { metadata.blocks() * 512 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_kept_for_one_image_only() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let disk = keep(folder.path(), "sha256:a").expect("kept");
        fs::write(&disk, "data").expect("written");
        keep(folder.path(), "sha256:a").expect("kept");
        assert!(disk.exists());
        keep(folder.path(), "sha256:b").expect("kept");
        assert!(!disk.exists());
    }

    #[test]
    fn a_disk_in_use_is_neither_replaced_nor_wiped() {
        let home = tempfile::TempDir::new().expect("a folder");
        let folder = home.path().join("project/api");
        let disk = keep(&folder, "sha256:a").expect("kept");
        fs::write(&disk, "data").expect("written");
        let held = lock(&disk).expect("free").expect("there");
        assert_eq!(keep(&folder, "sha256:b").expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(wipe(&folder).expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
        assert!(disk.exists());
        drop(held);
        assert!(wipe(&folder).expect("wiped") > 0);
        assert!(!folder.exists() && !folder.parent().expect("a parent").exists());
    }

    #[test]
    fn projects_of_one_name_have_different_keys() {
        let (here, there) = (project_key(Path::new("/a/my app")), project_key(Path::new("/b/my app")));
        assert_ne!(here, there);
        assert!(here.starts_with("my-app-"), "{here}");
    }
}
