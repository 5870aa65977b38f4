//! The programs that `iii` runs or updates, and where they are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::failure::Failure;

/// What `iii update` can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Itself,
    Console,
    Cloud,
    Worker,
    Init,
}

impl Target {
    pub(crate) const ALL: [Self; 5] = [Self::Itself, Self::Console, Self::Cloud, Self::Worker, Self::Init];

    /// By the name of the target or of its program.
    pub(crate) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| [target.name(), target.program()].contains(&text))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Itself => "self",
            Self::Console => "console",
            Self::Cloud => "cloud",
            Self::Worker => "worker",
            Self::Init => "iii-init",
        }
    }

    /// The name under which it is published.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Itself => "iii",
            Self::Console => "iii-console",
            Self::Cloud => "iii-cloud",
            Self::Worker => "iii-worker",
            Self::Init => "iii-init",
        }
    }

    /// The files of a release, in the order in which they are replaced: `iii` last, since its version is the release's.
    pub(crate) fn files(self) -> &'static [&'static str] {
        match self {
            Self::Itself => &["iii-vm", "iii-daemon", "iii-engine", "iii"],
            Self::Console => &["iii-console"],
            Self::Cloud => &["iii-cloud"],
            Self::Worker => &["iii-worker"],
            Self::Init => &["iii-init"],
        }
    }

    /// Where its files belong.
    pub(crate) fn folder(self) -> Result<PathBuf, Failure> {
        if self != Self::Itself {
            return user_folder();
        }
        let program = std::env::current_exe().and_then(|path| path.canonicalize());
        let folder = program.ok().and_then(|program| program.parent().map(Path::to_owned));
        folder.ok_or_else(|| Failure::new("the folder of this program cannot be found out"))
    }
}

/// `iii`, and what is there of the others.
pub(crate) fn installed() -> Vec<Target> {
    let is_there = |target: &Target| target.folder().is_ok_and(|folder| folder.join(target.program()).is_file());
    Target::ALL.into_iter().filter(|target| *target == Target::Itself || is_there(target)).collect()
}

/// Where programs of one user are.
fn user_folder() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(|home| Path::new(&home).join(".local/bin")).ok_or_else(|| Failure::new("HOME is not set"))
}

/// In the user's folder, else in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(program, user_folder().ok(), &path)
}

/// Relative folders are left out: a command must not depend on where it is typed.
fn find_in(program: &str, first: Option<PathBuf>, path: &OsStr) -> Option<PathBuf> {
    let folders = first.into_iter().chain(std::env::split_paths(path));
    let candidates = folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(program));
    candidates.into_iter().find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}

/// This machine as releases name it.
pub(crate) fn platform() -> String {
    let arch = std::env::consts::ARCH;
    if cfg!(target_os = "macos") {
        return format!("{arch}-apple-darwin");
    }
    format!("{arch}-unknown-linux-{}", if cfg!(target_env = "musl") { "musl" } else { "gnu" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_target_is_known_by_its_name_and_its_programs() {
        assert_eq!(Target::of("self"), Some(Target::Itself));
        assert_eq!(Target::of("iii"), Some(Target::Itself));
        assert_eq!(Target::of("iii-console"), Some(Target::Console));
        assert_eq!(Target::of("bogus"), None);
        for target in Target::ALL {
            assert_eq!(Target::of(target.name()), Some(target));
            assert!(target.files().last() == Some(&target.program()));
        }
    }

    #[test]
    fn a_program_is_looked_for_in_the_users_folder_then_in_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, mode: u32| {
            let file = folder.path().join(name).join("tool");
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let (own, locked, shared) = (place("own", 0o755), place("locked", 0o644), place("shared", 0o755));
        let parent = |file: &Path| file.parent().unwrap().to_owned();
        let path = std::env::join_paths([Path::new("relative"), &parent(&locked), &parent(&shared)]).unwrap();
        assert_eq!(find_in("tool", Some(parent(&own)), &path), Some(own));
        assert_eq!(find_in("tool", Some(parent(&locked)), &path), Some(shared));
        assert_eq!(find_in("tool", None, OsStr::new("")), None);
    }
}
