//! A worker's source on its way into the guest: which files, in what order, as a tar stream.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Folders that are not copied: the guest makes its own, and keeps them over restarts.
pub(crate) const KEPT_BY_GUEST: [&str; 7] =
    ["node_modules", ".venv", "target", "dist", "__pycache__", ".pytest_cache", ".next"];

/// Not copied either, and of no interest in the guest.
const NOT_COPIED: [&str; 1] = [".git"];

/// A change below one of these is no reason to restart.
const NOT_WATCHED: [&str; 36] = [
    "node_modules",
    ".pnpm-store",
    ".parcel-cache",
    ".turbo",
    ".next",
    ".nuxt",
    ".svelte-kit",
    "target",
    ".venv",
    "venv",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".tox",
    "vendor",
    ".bundle",
    ".gradle",
    ".m2",
    "obj",
    ".nuget",
    "_build",
    "deps",
    "dist",
    "build",
    "out",
    "coverage",
    ".cache",
    ".git",
    ".svn",
    ".hg",
    ".idea",
    ".vscode",
    ".DS_Store",
    ".iii",
    ".iii-worker.lock",
];

/// What says which dependencies there are: a change installs them again.
const DEPENDENCY_FILES: [&str; 25] = [
    "package.json",
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "bun.lock",
    "bun.lockb",
    "requirements.txt",
    "pyproject.toml",
    "poetry.lock",
    "Pipfile",
    "Pipfile.lock",
    "uv.lock",
    "Cargo.toml",
    "Cargo.lock",
    "go.mod",
    "go.sum",
    "Gemfile",
    "Gemfile.lock",
    "mix.exs",
    "mix.lock",
    "pom.xml",
    "build.gradle",
    "build.gradle.kts",
    "packages.config",
    "setup.py",
];

/// Whether a change of this relative path matters.
pub(crate) fn is_watched(path: &Path) -> bool {
    let ignored = |part: &str| NOT_WATCHED.contains(&part);
    // Editors write beside the file before they rename over it.
    let temporary = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.ends_with('~')
            || name.ends_with(".swp")
            || name.ends_with(".swx")
            || name.starts_with(".#")
            || name == "4913"
    });
    !temporary && !path.iter().any(|part| part.to_str().is_some_and(ignored))
}

/// Whether a change of this relative path installs dependencies again.
pub(crate) fn is_dependency_file(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| DEPENDENCY_FILES.contains(&name))
}

fn is_copied(path: &Path) -> bool {
    let left_out = |part: &str| KEPT_BY_GUEST.contains(&part) || NOT_COPIED.contains(&part);
    !path.iter().any(|part| part.to_str().is_some_and(left_out))
}

/// Changed paths, sorted into what is sent and what is gone.
pub(crate) fn split(root: &Path, changed: &BTreeSet<PathBuf>) -> (Vec<PathBuf>, Vec<String>) {
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for path in changed.iter().filter(|path| is_copied(path)) {
        match root.join(path).symlink_metadata() {
            Ok(_) => there.push(path.clone()),
            // A name that is no UTF-8 cannot be said in JSON; the next full copy removes it.
            Err(_) => gone.extend(path.to_str().map(str::to_owned)),
        }
    }
    (there, gone)
}

/// Writes `paths` below `root`, folders with what is in them, as a tar stream. Blocks.
///
/// What is no file, folder or link is left out; so is what vanishes meanwhile.
pub(crate) fn pack(root: &Path, paths: &[PathBuf], to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    for path in paths {
        append(&mut archive, root, path)?;
    }
    archive.into_inner()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, root: &Path, path: &Path) -> io::Result<()> {
    let full = root.join(path);
    let Ok(metadata) = full.symlink_metadata() else { return Ok(()) };
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    if metadata.is_dir() {
        if !path.as_os_str().is_empty() {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, io::empty())?;
        }
        let Ok(entries) = fs::read_dir(&full) else { return Ok(()) };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for child in names.into_iter().map(|name| path.join(name)).filter(|child| is_copied(child)) {
            append(archive, root, &child)?;
        }
    } else if metadata.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        archive.append_link(&mut header, path, fs::read_link(&full)?)?;
    } else if metadata.is_file() {
        let Ok(file) = File::open(&full) else {
            return Err(io::Error::other(format!("{} cannot be read", full.display())));
        };
        let length = file.metadata()?.len();
        header.set_size(length);
        // Exactly as long as announced, whatever happens to the file meanwhile.
        archive.append_data(&mut header, path, file.chain(io::repeat(0)).take(length))?;
    }
    Ok(())
}

/// Changes whenever a dependency file below `root` does.
pub(crate) fn dependency_digest(root: &Path) -> String {
    let mut files = Vec::new();
    collect(root, Path::new(""), &mut files);
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(fs::read(root.join(&path)).unwrap_or_default());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn collect(root: &Path, below: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root.join(below)) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && is_copied(&path) && is_watched(&path) {
            collect(root, &path, files);
        } else if kind.is_file() && is_dependency_file(&path) {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn project() -> TempDir {
        let folder = TempDir::new().expect("a folder");
        let root = folder.path();
        for (path, content) in [
            ("a.py", "a"),
            ("lib/b.py", "b"),
            ("node_modules/x/index.js", "x"),
            (".git/HEAD", "h"),
            ("package.json", "{}"),
        ] {
            fs::create_dir_all(root.join(path).parent().expect("a parent")).expect("made");
            fs::write(root.join(path), content).expect("written");
        }
        symlink("a.py", root.join("link")).expect("a link");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        folder
    }

    #[test]
    fn everything_but_dependencies_and_history_is_packed() {
        let folder = project();
        let mut bytes = Vec::new();
        pack(folder.path(), &[PathBuf::new()], &mut bytes).expect("packed");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> = archive
            .entries()
            .expect("entries")
            .map(|e| e.expect("entry").path().expect("path").display().to_string())
            .collect();
        assert_eq!(names, ["a.py", "lib", "lib/b.py", "link", "package.json"]);
    }

    #[test]
    fn changes_are_sent_deletions_are_named_and_noise_is_not_watched() {
        let folder = project();
        let changed = ["a.py", "gone.py", "node_modules/x", "lib"].map(PathBuf::from).into();
        let (there, gone) = split(folder.path(), &changed);
        assert_eq!((there, gone), (vec!["a.py".into(), "lib".into()], vec!["gone.py".to_owned()]));
        for (path, watched) in [
            ("src/a.rs", true),
            ("a/node_modules/b", false),
            (".git/index", false),
            ("a.py~", false),
            (".a.py.swp", false),
        ] {
            assert_eq!(is_watched(Path::new(path)), watched, "{path}");
        }
    }

    #[test]
    fn a_changed_lock_file_changes_the_digest_and_a_changed_source_does_not() {
        let folder = project();
        let before = dependency_digest(folder.path());
        fs::write(folder.path().join("a.py"), "other").expect("written");
        assert_eq!(dependency_digest(folder.path()), before);
        fs::write(folder.path().join("lib/requirements.txt"), "x").expect("written");
        assert_ne!(dependency_digest(folder.path()), before);
    }
}
