//! File functions, on the guest's own view of its disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::{DirEntry, ErrorCode, GuestFailure, Reply};

use crate::wire::{Stream, failure, io_failure};

type Outcome = Result<Reply, GuestFailure>;

/// Distinguishes the temporary files of writes that run at once.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn absolute(path: &str) -> Result<&Path, GuestFailure> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(Path::new(path))
    } else {
        Err(failure(ErrorCode::Invalid, format!("`{path}` is not an absolute path")))
    }
}

fn entry(name: String, metadata: &fs::Metadata) -> DirEntry {
    DirEntry {
        name,
        is_dir: metadata.is_dir(),
        is_symlink: metadata.is_symlink(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        mtime: metadata.mtime(),
    }
}

/// The entries as one JSON array, through the flow control that output has: a folder may hold millions.
pub(crate) fn list(stream: &Stream, path: &str) {
    let listed = entries(path).and_then(|entries| {
        let text = serde_json::to_vec(&entries).map_err(|error| failure(ErrorCode::Io, format!("{path}: {error}")))?;
        stream.output_all(&text).map_err(|error| io_failure(path, &error))?;
        Ok(Reply::Done)
    });
    stream.finish(listed);
}

fn entries(path: &str) -> Result<Vec<DirEntry>, GuestFailure> {
    let folder = absolute(path)?;
    let mut entries = Vec::new();
    for found in fs::read_dir(folder).map_err(|error| io_failure(path, &error))? {
        let found = found.map_err(|error| io_failure(path, &error))?;
        // One that has gone since is no failure of the listing.
        if let Ok(metadata) = found.metadata() {
            entries.push(entry(found.file_name().to_string_lossy().into_owned(), &metadata));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

pub(crate) fn stat(path: &str) -> Outcome {
    let metadata = fs::symlink_metadata(absolute(path)?).map_err(|error| io_failure(path, &error))?;
    let name = Path::new(path).file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy().into_owned());
    Ok(Reply::Entry { entry: entry(name, &metadata) })
}

pub(crate) fn read(stream: &Stream, path: &str) {
    stream.finish(read_out(stream, path));
}

fn read_out(stream: &Stream, path: &str) -> Outcome {
    let explain = |error: io::Error| io_failure(path, &error);
    // Non-blocking, so that a FIFO without a writer does not hold us; for a regular file it changes nothing.
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(absolute(path)?).map_err(explain)?;
    let metadata = file.metadata().map_err(explain)?;
    if !metadata.is_file() {
        return Err(failure(ErrorCode::WrongType, format!("{path}: not a regular file")));
    }
    let head = Reply::File { size: metadata.len(), mode: metadata.mode() & 0o7777, mtime: metadata.mtime() };
    stream.reply(&head, false);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(explain)? {
            0 => return Ok(Reply::Done),
            length => stream.output_all(&buffer[..length]).map_err(explain)?,
        }
    }
}

pub(crate) fn write(mut content: impl Read, path: &str, mode: u32, parents: bool) -> Outcome {
    let target = absolute(path)?;
    let explain = |error: io::Error| io_failure(path, &error);
    let Some(parent) = target.parent() else {
        return Err(failure(ErrorCode::WrongType, format!("{path}: is a directory")));
    };
    if fs::metadata(target).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(failure(ErrorCode::WrongType, format!("{path}: is a directory")));
    }
    if parents {
        fs::create_dir_all(parent).map_err(explain)?;
    } else if !parent.exists() {
        return Err(failure(ErrorCode::ParentNotFound, parent.display().to_string()));
    }
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".iii-tmp-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let temporary = Temporary(parent.join(name));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary.0).map_err(explain)?;
    let bytes = copy(&mut content, &mut file).map_err(explain)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777)).map_err(explain)?;
    file.sync_all().map_err(explain)?;
    fs::rename(&temporary.0, target).map_err(explain)?;
    std::mem::forget(temporary);
    let _ = File::open(parent).and_then(|folder| folder.sync_all());
    Ok(Reply::Written { bytes })
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(total),
            length => {
                to.write_all(&buffer[..length])?;
                total += length as u64;
            }
        }
    }
}

/// A file that is removed unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) fn make_dir(path: &str, mode: u32, parents: bool) -> Outcome {
    let folder = absolute(path)?;
    if folder.is_dir() && parents {
        return Ok(Reply::Count { count: 0 });
    }
    if let Some(parent) = folder.parent() {
        if parents {
            fs::create_dir_all(parent).map_err(|error| io_failure(path, &error))?;
        } else if !parent.exists() {
            return Err(failure(ErrorCode::ParentNotFound, parent.display().to_string()));
        }
    }
    fs::create_dir(folder).map_err(|error| io_failure(path, &error))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode & 0o7777)).map_err(|error| io_failure(path, &error))?;
    Ok(Reply::Count { count: 1 })
}

pub(crate) fn remove(path: &str, recursive: bool) -> Outcome {
    let target = absolute(path)?;
    if target.components().count() == 1 {
        return Err(failure(ErrorCode::Invalid, "the root directory is not removed"));
    }
    let metadata = fs::symlink_metadata(target).map_err(|error| io_failure(path, &error))?;
    let removed = match (metadata.is_dir(), recursive) {
        (true, true) => fs::remove_dir_all(target),
        (true, false) => fs::remove_dir(target),
        (false, _) => fs::remove_file(target),
    };
    removed.map_err(|error| io_failure(path, &error))?;
    Ok(Reply::Done)
}

pub(crate) fn change_mode(path: &str, mode: u32, uid: Option<u32>, gid: Option<u32>, recursive: bool) -> Outcome {
    let mut count = 0;
    let mut pending = vec![absolute(path)?.to_owned()];
    while let Some(next) = pending.pop() {
        let explain = |error: io::Error| io_failure(next.display(), &error);
        let metadata = fs::symlink_metadata(&next).map_err(explain)?;
        if metadata.is_symlink() && count > 0 {
            continue;
        }
        fs::set_permissions(&next, fs::Permissions::from_mode(mode & 0o7777)).map_err(explain)?;
        if uid.is_some() || gid.is_some() {
            std::os::unix::fs::chown(&next, uid, gid).map_err(explain)?;
        }
        count += 1;
        if recursive && metadata.is_dir() {
            for found in fs::read_dir(&next).map_err(explain)? {
                pending.push(found.map_err(explain)?.path());
            }
        }
    }
    Ok(Reply::Count { count })
}

pub(crate) fn rename(from: &str, to: &str, overwrite: bool) -> Outcome {
    let (source, target) = (absolute(from)?, absolute(to)?);
    let metadata = fs::symlink_metadata(source).map_err(|error| io_failure(from, &error))?;
    if !overwrite && fs::symlink_metadata(target).is_ok() {
        return Err(failure(ErrorCode::AlreadyExists, to));
    }
    if target.parent().is_some_and(|parent| !parent.exists()) {
        return Err(failure(ErrorCode::ParentNotFound, to));
    }
    match fs::rename(source, target) {
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            copy_tree(source, target, &metadata).map_err(|error| io_failure(to, &error))?;
            remove(from, true)
        }
        Err(error) => Err(io_failure(format!("{from} to {to}"), &error)),
        Ok(()) => Ok(Reply::Done),
    }
}

fn copy_tree(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if !metadata.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir(to)?;
    fs::set_permissions(to, metadata.permissions())?;
    for found in fs::read_dir(from)? {
        let found = found?;
        copy_tree(&found.path(), &to.join(found.file_name()), &found.metadata()?)?;
    }
    Ok(())
}
