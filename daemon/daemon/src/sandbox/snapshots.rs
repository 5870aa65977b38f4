//! The snapshots on this machine: what is kept beside the VM's own files, and how they are found and removed.
//!
//! ```text
//! III_HOME/snapshots/<id>/vm/          the VM's: memory, state, disks (see vmm::SnapshotInfo)
//!                         about.json   written last; a folder without it was never finished
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon_api::snapshot::Row;
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::SnapshotInfo;

const ABOUT: &str = "about.json";

/// Names are for people to type.
const MAX_NAME_CHARS: usize = 64;

/// Locked by whoever makes the snapshot, until it is finished.
const MAKER: &str = "maker";

/// Between a folder and the lock in it lie two system calls.
const JUST_BEGUN: Duration = Duration::from_secs(60);

/// What a sandbox of a snapshot needs to know of its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) id: Uuid,
    pub(crate) name: Option<String>,
    /// As the source was asked for; restoring needs the same permission.
    pub(crate) image: String,
    pub(crate) network: bool,
    /// What its commands were given.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// The sandbox it was taken of.
    pub(crate) source: Uuid,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    pub(crate) size_bytes: u64,
}

/// A snapshot that is complete.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) about: About,
    /// The VM's part.
    pub(crate) vm: PathBuf,
    folder: PathBuf,
}

/// All of one user.
pub(crate) struct Snapshots {
    folder: PathBuf,
    /// One name at a time, so that two are not given to two snapshots.
    naming: Mutex<()>,
}

impl Snapshots {
    /// Removes what was never finished.
    pub(crate) fn open(folder: PathBuf) -> Self {
        let snapshots = Self { folder, naming: Mutex::new(()) };
        for folder in snapshots.folders() {
            if !folder.join(ABOUT).exists() && is_abandoned(&folder) {
                let _ = fs::remove_dir_all(folder);
            }
        }
        snapshots
    }

    fn folders(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// A folder for a snapshot that is to be made, its id, and what keeps it from being swept until it is finished.
    pub(crate) fn begin(&self) -> Result<(Uuid, PathBuf, Flock<File>), SandboxError> {
        let id = Uuid::new_v4();
        let folder = self.folder.join(id.to_string());
        let lock = || -> io::Result<Flock<File>> {
            fs::create_dir_all(&folder)?;
            let file = File::create(folder.join(MAKER))?;
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
        };
        let lock = lock().map_err(|error| failed(&folder, &error))?;
        Ok((id, folder, lock))
    }

    /// Makes it a snapshot, under a name that no other has.
    pub(crate) fn finish(&self, folder: &Path, about: &About) -> Result<(), SandboxError> {
        let _one = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = &about.name {
            self.check_name(name)?;
        }
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec_pretty(about)?)?;
            file.as_file().sync_all()?;
            file.persist(folder.join(ABOUT))?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|error| failed(folder, &error))
    }

    /// Before the work, so that it is not in vain.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), SandboxError> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
        if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(plain) {
            let message = format!("name `{name}` is not 1 to {MAX_NAME_CHARS} letters, digits, `-`, `_` or `.`");
            return Err(SandboxError::invalid(message));
        }
        if Uuid::parse_str(name).is_ok() {
            return Err(SandboxError::invalid(format!("name `{name}` looks like an id")));
        }
        match self.all().into_iter().find(|stored| stored.about.name.as_deref() == Some(name)) {
            Some(stored) => Err(SandboxError::invalid(format!("name `{name}` is snapshot {}'s", stored.about.id))),
            None => Ok(()),
        }
    }

    /// By id or name.
    pub(crate) fn find(&self, wanted: &str) -> Result<Stored, SandboxError> {
        let absent = || SandboxError::new(Kind::SnapshotNotFound, format!("no snapshot `{wanted}`"));
        match wanted.parse::<Uuid>() {
            Ok(id) => read(&self.folder.join(id.to_string())).ok_or_else(absent),
            Err(_) => {
                let named = self.all().into_iter().find(|stored| stored.about.name.as_deref() == Some(wanted));
                named.ok_or_else(absent)
            }
        }
    }

    /// Sandboxes that were made of it keep what they need.
    pub(crate) fn delete(&self, wanted: &str) -> Result<Uuid, SandboxError> {
        let stored = self.find(wanted)?;
        // Without this file it is none, whatever becomes of the rest.
        fs::remove_file(stored.folder.join(ABOUT)).map_err(|error| failed(&stored.folder, &error))?;
        fs::remove_dir_all(&stored.folder).map_err(|error| failed(&stored.folder, &error))?;
        Ok(stored.about.id)
    }

    fn all(&self) -> Vec<Stored> {
        self.folders().iter().filter_map(|folder| read(folder)).collect()
    }

    pub(crate) fn list(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .all()
            .into_iter()
            .map(|Stored { about, vm, .. }| {
                let info = SnapshotInfo::read(&vm).ok();
                Row {
                    snapshot_id: about.id.to_string(),
                    name: about.name,
                    image: about.image,
                    created_at: about.created_at,
                    size_bytes: about.size_bytes,
                    cpus: info.as_ref().map_or(0, |info| info.vcpus.get()),
                    memory_mb: info.as_ref().map_or(0, |info| info.memory.mib()),
                    network: about.network,
                    source: about.source.to_string(),
                }
            })
            .collect();
        rows.sort_by_key(|row| row.created_at);
        rows
    }
}

/// Whether nobody works on it any more.
fn is_abandoned(folder: &Path) -> bool {
    match File::open(folder.join(MAKER)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(_) => {
            let modified = fs::metadata(folder).and_then(|about| about.modified());
            modified.ok().and_then(|time| time.elapsed().ok()).is_none_or(|age| age > JUST_BEGUN)
        }
    }
}

/// `None` when it is not, or not yet, a snapshot.
fn read(folder: &Path) -> Option<Stored> {
    let about: About = serde_json::from_slice(&fs::read(folder.join(ABOUT)).ok()?).ok()?;
    // A folder that was copied by hand is no second snapshot.
    (folder.file_name()?.to_str()? == about.id.to_string()).then(|| Stored {
        about,
        vm: folder.join("vm"),
        folder: folder.to_owned(),
    })
}

fn failed(folder: &Path, error: &io::Error) -> SandboxError {
    SandboxError::new(Kind::SnapshotFailed, format!("{}: {error}", folder.display()))
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(id: Uuid, name: Option<&str>) -> About {
        About {
            id,
            name: name.map(str::to_owned),
            image: "python".to_owned(),
            network: false,
            env: BTreeMap::new(),
            source: Uuid::new_v4(),
            created_at: unix_seconds(),
            size_bytes: 1,
        }
    }

    #[test]
    fn a_snapshot_is_found_by_id_and_name_until_it_is_deleted() {
        let home = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(home.path().to_owned());
        let (id, folder, _lock) = snapshots.begin().expect("begun");
        assert!(snapshots.find(&id.to_string()).is_err(), "it is not finished");
        snapshots.finish(&folder, &about(id, Some("warm"))).expect("finished");
        assert_eq!(snapshots.find("warm").expect("by name").about.id, id);
        assert_eq!(snapshots.find(&id.to_string()).expect("by id").vm, folder.join("vm"));
        assert_eq!(snapshots.delete("warm").expect("deleted"), id);
        assert_eq!(snapshots.find("warm").expect_err("gone").kind, Kind::SnapshotNotFound);
        assert!(!folder.exists());
    }

    #[test]
    fn names_are_plain_and_unique() {
        let home = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(home.path().to_owned());
        let (id, folder, _lock) = snapshots.begin().expect("begun");
        snapshots.finish(&folder, &about(id, Some("warm"))).expect("finished");
        let long = "x".repeat(65);
        for bad in ["", "a/b", "../x", "warm", "é", &long, "7d9f2c38-5a4e-4a3b-9a52-111111111111"] {
            assert!(snapshots.check_name(bad).is_err(), "{bad}");
        }
        assert!(snapshots.check_name("warm.2-x_y").is_ok());
    }

    #[test]
    fn what_nobody_makes_any_more_is_swept() {
        let home = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(home.path().to_owned());
        let (_, living, _lock) = snapshots.begin().expect("begun");
        let (_, dead, lock) = snapshots.begin().expect("begun");
        drop(lock);
        let (young, old) = (home.path().join("young"), home.path().join("old"));
        for folder in [&old, &young] {
            fs::create_dir(folder).expect("made");
        }
        let long_ago = SystemTime::now() - 2 * JUST_BEGUN;
        File::open(&old).and_then(|folder| folder.set_modified(long_ago)).expect("aged");
        let _ = Snapshots::open(home.path().to_owned());
        let left = [&living, &young, &dead, &old].map(|folder| folder.exists());
        assert_eq!(left, [true, true, false, false]);
    }
}
