//! Changed source files, applied when all of them have arrived.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::{ErrorCode, GuestFailure, Reply};

use crate::wire::{failure, io_failure};

static NEXT: AtomicU64 = AtomicU64::new(0);

pub(crate) fn run(
    archive: impl Read,
    root: &str,
    delete: &[String],
    replace: bool,
    keep: &[String],
) -> Result<Reply, GuestFailure> {
    if !root.starts_with('/') || root.len() < 2 {
        return Err(failure(ErrorCode::Invalid, format!("`{root}` is no absolute path below the root directory")));
    }
    let root = Path::new(root);
    let delete: Vec<PathBuf> = delete.iter().map(|path| inside(Path::new(path))).collect::<Result<_, _>>()?;
    let explain = |error: io::Error| io_failure(format!("sync {}", root.display()), &error);
    fs::create_dir_all(root).map_err(explain)?;
    // Beside the root: on the same file system, and never seen by who watches the root.
    let name = format!(".iii-sync-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let staging = Staging(root.parent().unwrap_or(Path::new("/")).join(name));
    let _ = fs::remove_dir_all(&staging.0);
    fs::create_dir(&staging.0).map_err(explain)?;
    let arrived = unpack(archive, &staging.0)?;
    let mut deleted = 0;
    for path in &delete {
        deleted += u64::from(remove(&root.join(path)));
    }
    if replace {
        deleted += remove_others(root, Path::new(""), &arrived, keep).map_err(explain)?;
    }
    let mut files = 0;
    for (path, is_dir) in &arrived {
        files += u64::from(!is_dir);
        place(&staging.0.join(path), &root.join(path), *is_dir).map_err(explain)?;
    }
    Ok(Reply::Synced { files, deleted })
}

/// Unpacks into `staging`; returns what arrived, parents before children, and whether it is a directory.
fn unpack(archive: impl Read, staging: &Path) -> Result<BTreeSet<(PathBuf, bool)>, GuestFailure> {
    let explain = |error: io::Error| io_failure("read the archive", &error);
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    let mut arrived = BTreeSet::new();
    for entry in archive.entries().map_err(explain)? {
        let mut entry = entry.map_err(explain)?;
        let path = inside(&entry.path().map_err(explain)?)?;
        if path.as_os_str().is_empty() {
            continue;
        }
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            return Err(failure(ErrorCode::Invalid, format!("{} is no file, directory or link", path.display())));
        }
        // Refuses to go through links that an earlier entry has planted.
        if !entry.unpack_in(staging).map_err(explain)? {
            return Err(failure(ErrorCode::Invalid, format!("{} leads out of the root", path.display())));
        }
        arrived.insert((path, kind.is_dir()));
    }
    Ok(arrived)
}

/// A relative path without `..`; `.` and a trailing slash are dropped.
fn inside(path: &Path) -> Result<PathBuf, GuestFailure> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return Err(failure(ErrorCode::Invalid, format!("{} leads out of the root", path.display()))),
        }
    }
    Ok(clean)
}

fn place(from: &Path, to: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        if !fs::symlink_metadata(to).is_ok_and(|metadata| metadata.is_dir()) {
            remove(to);
            fs::create_dir_all(to)?;
        }
        return fs::set_permissions(to, fs::metadata(from)?.permissions());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::symlink_metadata(to).is_ok_and(|metadata| metadata.is_dir()) {
        fs::remove_dir_all(to)?;
    }
    fs::rename(from, to)
}

fn remove(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).is_ok(),
        Ok(_) => fs::remove_file(path).is_ok(),
        Err(_) => false,
    }
}

/// Removes what the archive lacks, except names that are kept.
fn remove_others(root: &Path, below: &Path, arrived: &BTreeSet<(PathBuf, bool)>, keep: &[String]) -> io::Result<u64> {
    let mut deleted = 0;
    for found in fs::read_dir(root.join(below))? {
        let found = found?;
        let path = below.join(found.file_name());
        if keep.iter().any(|kept| found.file_name() == kept.as_str()) {
            continue;
        }
        let is_dir = found.file_type()?.is_dir();
        let has_children = || arrived.iter().any(|(other, _)| other.starts_with(&path));
        if is_dir && has_children() {
            deleted += remove_others(root, &path, arrived, keep)?;
        } else if !arrived.contains(&(path.clone(), is_dir)) {
            deleted += u64::from(remove(&root.join(&path)));
        }
    }
    Ok(deleted)
}

struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
