//! Which QEMU runs guests: the one that is named, the kit's own, or the one that is installed.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::kit::Kit;

/// The program's file name, also in a kit.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// QEMU's program: where it is, or what was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuProgram {
    Found(PathBuf),
    Missing {
        tried: String,
    },
    /// The machine that our driver describes is a PC, and this is none.
    OtherProcessor,
}

impl QemuProgram {
    /// `III_QEMU`, else the kit's own, else `qemu-system-x86_64` in `PATH`.
    #[must_use]
    pub fn find(kit: &Kit) -> Self {
        if cfg!(not(target_arch = "x86_64")) {
            return Self::OtherProcessor;
        }
        Self::among(env::var_os("III_QEMU"), kit.qemu.as_deref(), env::var_os("PATH"))
    }

    fn among(named: Option<OsString>, in_kit: Option<&Path>, path: Option<OsString>) -> Self {
        if let Some(named) = named.filter(|value| !value.is_empty()).map(PathBuf::from) {
            let tried = named.display().to_string();
            return if named.is_file() { Self::Found(named) } else { Self::Missing { tried } };
        }
        let path = path.unwrap_or_default();
        let installed = || env::split_paths(&path).map(|folder| folder.join(QEMU)).find(|program| program.is_file());
        let found = in_kit.map(Path::to_owned).or_else(installed);
        found.map_or_else(|| Self::Missing { tried: QEMU.to_owned() }, Self::Found)
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
        let missing = |tried: &str| QemuProgram::Missing { tried: tried.to_owned() };
        let nothing = Path::new("");

        assert_eq!(find(nothing, None), missing(QEMU));
        fs::write(installed.join(QEMU), "").unwrap();
        assert_eq!(find(nothing, None), QemuProgram::Found(installed.join(QEMU)));
        assert_eq!(find(nothing, Some(&in_kit)), QemuProgram::Found(in_kit.clone()));
        assert_eq!(find(&named, Some(&in_kit)), missing(&named.display().to_string()), "nothing takes its place");
        fs::write(&named, "").unwrap();
        assert_eq!(find(&named, Some(&in_kit)), QemuProgram::Found(named.clone()));
    }
}
