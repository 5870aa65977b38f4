//! Where things are below `III_HOME`, and who owns what is running there.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use nix::fcntl::{Flock, FlockArg};

/// One user's folder, mode 0700.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

impl Home {
    /// `III_HOME`, or `~/.iii`; made if it is not there.
    pub(crate) fn open() -> io::Result<Self> {
        let path = env::var_os("III_HOME")
            .map_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".iii"), PathBuf::from);
        let home = Self(path);
        for folder in
            [home.0.clone(), home.run(), home.images(), home.templates(), home.workers(), home.logs(), home.snapshots()]
        {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        fs::set_permissions(&home.0, fs::Permissions::from_mode(0o700))?;
        Ok(home)
    }

    pub(crate) fn kit(&self) -> PathBuf {
        self.0.join("lib/kit")
    }

    /// The base image of that name, as an OCI layout, if it was built here.
    pub(crate) fn base_image(&self, name: &str) -> Option<PathBuf> {
        let layout = self.0.join("lib/images").join(name);
        layout.join("index.json").exists().then_some(layout)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(crate) fn workers(&self) -> PathBuf {
        self.0.join("workers")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
}

/// A lock that one living process holds; its file says which.
pub(crate) struct Owned {
    _lock: Flock<fs::File>,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOwned {
    #[error("process {pid} has it")]
    Held { pid: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes the lock `name` in `run`.
pub(crate) fn own(run: &Path, name: &str) -> Result<Owned, NotOwned> {
    let path = run.join(name);
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            fs::write(&path, std::process::id().to_string())?;
            Ok(Owned { _lock: lock })
        }
        Err(_) => Err(NotOwned::Held { pid: fs::read_to_string(&path).unwrap_or_default().trim().to_owned() }),
    }
}

/// A VM's run directory. A lock inside says that its owner lives; it goes when it is dropped.
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

/// Name of the lock inside a run directory.
const OWNER: &str = "owner";

impl RunDir {
    pub(crate) fn create(run: &Path, id: &str) -> io::Result<Self> {
        let path = run.join(id);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let file = fs::File::create(path.join(OWNER))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| io::Error::from(error))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes run directories whose owners have died: the lock of a living one cannot be taken.
pub(crate) fn sweep(run: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        // Without a lock file it is being made this very moment, or was never finished.
        let Ok(file) = fs::File::open(path.join(OWNER)) else {
            let age =
                entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age.as_secs() > 60) {
                let _ = fs::remove_dir_all(&path);
            }
            continue;
        };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_owners_directory_is_swept_and_a_living_ones_is_not() {
        let run = tempfile::TempDir::new().expect("a folder");
        let living = RunDir::create(run.path(), "living").expect("made");
        fs::create_dir(run.path().join("dead")).expect("made");
        fs::write(run.path().join("dead").join(OWNER), "").expect("written");
        sweep(run.path());
        assert!(living.path().exists() && !run.path().join("dead").exists());
        drop(living);
        assert!(!run.path().join("living").exists());
    }

    #[test]
    fn a_second_owner_hears_who_the_first_is() {
        let run = tempfile::TempDir::new().expect("a folder");
        let first = own(run.path(), "x.lock");
        assert!(first.is_ok());
        let second = own(run.path(), "x.lock");
        assert!(matches!(second, Err(NotOwned::Held { pid }) if pid == std::process::id().to_string()));
    }
}
