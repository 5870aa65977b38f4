//! Which QEMU runs guests: the one that is named, the kit's own, or the one that is installed.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::choice::ChoiceError;

/// The program's file name, also in a kit.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// QEMU's program: where it is, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuProgram {
    Found {
        path: PathBuf,
        origin: Origin,
    },
    /// `III_QEMU` names what is no file.
    NamedInVain {
        path: PathBuf,
    },
    NotInstalled,
    /// The machine that our driver describes is a PC, and this is none.
    OtherProcessor,
}

/// Where a program was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `III_QEMU`.
    Named,
    Kit,
    Path,
}

impl QemuProgram {
    /// What `III_QEMU` names, else the kit's own, else `qemu-system-x86_64` in `PATH`.
    #[must_use]
    pub fn find(in_kit: Option<&Path>) -> Self {
        if cfg!(not(target_arch = "x86_64")) {
            return Self::OtherProcessor;
        }
        Self::among(env::var_os("III_QEMU"), in_kit, env::var_os("PATH"))
    }

    /// The program's path.
    ///
    /// # Errors
    /// There is none, or none for this processor.
    pub fn path(&self) -> Result<&Path, ChoiceError> {
        match self {
            Self::Found { path, .. } => Ok(path),
            Self::NamedInVain { path } => Err(ChoiceError::QemuNamedInVain { path: path.clone() }),
            Self::NotInstalled => Err(ChoiceError::NoQemu),
            Self::OtherProcessor => Err(ChoiceError::QemuNeedsX86),
        }
    }

    /// It is not the distribution's: it may be our own, which knows more.
    #[must_use]
    pub fn may_be_ours(&self) -> bool {
        matches!(self, Self::Found { origin: Origin::Kit | Origin::Named, .. })
    }

    fn among(named: Option<OsString>, in_kit: Option<&Path>, path: Option<OsString>) -> Self {
        if let Some(path) = named.filter(|value| !value.is_empty()).map(PathBuf::from) {
            // Nothing takes its place.
            return if path.is_file() {
                Self::Found { path, origin: Origin::Named }
            } else {
                Self::NamedInVain { path }
            };
        }
        if let Some(path) = in_kit.map(Path::to_owned) {
            return Self::Found { path, origin: Origin::Kit };
        }
        let path = path.unwrap_or_default();
        let installed = env::split_paths(&path).map(|folder| folder.join(QEMU)).find(|program| program.is_file());
        installed.map_or(Self::NotInstalled, |path| Self::Found { path, origin: Origin::Path })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_named_comes_before_the_kits_and_that_before_the_installed_one() {
        let place = tempfile::tempdir().unwrap();
        let [in_kit, installed, named] = ["in_kit", "installed", "named"].map(|name| place.path().join(name));
        fs::create_dir(&installed).unwrap();
        let path = env::join_paths([&place.path().join("empty"), &installed]).unwrap();
        let find = |named: &Path, in_kit| QemuProgram::among(Some(named.into()), in_kit, Some(path.clone()));
        let found = |path: &Path, origin| QemuProgram::Found { path: path.to_owned(), origin };
        let nothing = Path::new("");

        assert_eq!(find(nothing, None), QemuProgram::NotInstalled);
        fs::write(installed.join(QEMU), "").unwrap();
        assert_eq!(find(nothing, None), found(&installed.join(QEMU), Origin::Path));
        assert_eq!(find(nothing, Some(&in_kit)), found(&in_kit, Origin::Kit));
        assert_eq!(find(&named, Some(&in_kit)), QemuProgram::NamedInVain { path: named.clone() });
        fs::write(&named, "").unwrap();
        assert_eq!(find(&named, Some(&in_kit)), found(&named, Origin::Named));
        assert!(find(&named, None).may_be_ours() && !find(nothing, None).may_be_ours());
    }
}
