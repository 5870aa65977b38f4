//! `state.json`: which programs were installed, and when releases were last looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A file larger than this is not ours.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("neither XDG_DATA_HOME nor HOME is set")]
    NoFolder,
    #[error("could not read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{} is damaged: it is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("could not write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("another `iii update` is running")]
    Busy,
}

impl StateError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } | Self::TooLarge { path } => {
                Some(format!("delete {}: `iii update TARGET` installs again what it names", path.display()))
            }
            Self::Busy => Some("wait until it has ended".into()),
            Self::NoFolder | Self::Read { .. } | Self::Write { .. } => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Installed {
    pub(crate) version: semver::Version,
    pub(crate) installed_at: String,
    pub(crate) asset_name: String,
}

/// What the file says. Keys of other versions are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) binaries: BTreeMap<String, Installed>,
    last_update_check: Option<Timestamp>,
    update_check_interval_hours: u32,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Default for State {
    fn default() -> Self {
        Self { binaries: BTreeMap::new(), last_update_check: None, update_check_interval_hours: 24, others: Map::new() }
    }
}

impl State {
    pub(crate) fn note_check(&mut self, now: Timestamp) {
        self.last_update_check = Some(whole_seconds(now));
    }

    pub(crate) fn note_installed(&mut self, program: &str, version: semver::Version, asset: String, now: Timestamp) {
        let installed = Installed { version, installed_at: whole_seconds(now).to_string(), asset_name: asset };
        self.binaries.insert(program.to_owned(), installed);
    }

    /// Whether the last look at releases is long enough ago, or in the future.
    pub(crate) fn is_check_due(&self, now: Timestamp) -> bool {
        let interval = i64::from(self.update_check_interval_hours).hours();
        let next = self.last_update_check.and_then(|last| last.checked_add(interval).ok());
        next.is_none_or(|next| next <= now) || self.last_update_check.is_some_and(|last| last > now)
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The file, which may not exist yet.
pub(crate) struct StateFile(PathBuf);

impl StateFile {
    pub(crate) fn of_user() -> Result<Self, StateError> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
        let in_home = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
        let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(in_home)));
        Ok(Self(data.ok_or(StateError::NoFolder)?.join("iii/state.json")))
    }

    /// An absent file is an empty state.
    pub(crate) fn read(&self) -> Result<State, StateError> {
        let path = || self.0.clone();
        let size = match fs::metadata(&self.0) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(StateError::Read { path: path(), source }),
        };
        if size > MAX_BYTES {
            return Err(StateError::TooLarge { path: path() });
        }
        let text = fs::read(&self.0).map_err(|source| StateError::Read { path: path(), source })?;
        serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path: path(), source })
    }

    /// Replaces the file as one step.
    pub(crate) fn write(&self, state: &State) -> Result<(), StateError> {
        let folder = self.0.parent().unwrap_or(Path::new("/"));
        let write = || {
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, state)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&self.0)?;
            Ok(())
        };
        write().map_err(|source| StateError::Write { path: self.0.clone(), source })
    }

    /// Held by the one `iii update` of this user that may run; ends with the process.
    pub(crate) fn lock(&self) -> Result<Flock<File>, StateError> {
        let path = self.0.with_file_name("update.lock");
        let open = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            File::create(&path)
        };
        let file = open().map_err(|source| StateError::Write { path: path.clone(), source })?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StateError::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_folder() -> (tempfile::TempDir, StateFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile(folder.path().join("iii/state.json"));
        (folder, file)
    }

    #[test]
    fn what_is_written_is_read_again_and_foreign_keys_stay() {
        let (_folder, file) = in_folder();
        assert_eq!(file.read().unwrap(), State::default());
        file.write(&State::default()).unwrap();
        let text = r#"{"binaries":{"iii-console":{"version":"0.19.5","installed_at":"2026-05-04T09:12:00Z",
            "asset_name":"a.tar.gz"}},"last_update_check":"2026-05-04T09:12:00Z","update_check_interval_hours":24,
            "later":1}"#;
        fs::write(&file.0, text).unwrap();
        let mut state = file.read().unwrap();
        assert_eq!(state.binaries["iii-console"].version.to_string(), "0.19.5");
        state.note_installed("iii-cloud", semver::Version::new(1, 2, 3), "b.tar.gz".into(), Timestamp::UNIX_EPOCH);
        file.write(&state).unwrap();
        let text = fs::read_to_string(&file.0).unwrap();
        assert!(text.contains("\"later\": 1") && text.contains("\"1970-01-01T00:00:00Z\""), "{text}");
        assert_eq!(file.read().unwrap(), state);
    }

    #[test]
    fn a_damaged_file_is_an_error_with_a_way_out() {
        let (_folder, file) = in_folder();
        file.write(&State::default()).unwrap();
        for text in ["", "{", "[]", "{\"binaries\":{\"a\":{\"version\":\"x\"}}}"] {
            fs::write(&file.0, text).unwrap();
            let error = file.read().expect_err(text);
            assert!(matches!(error, StateError::Damaged { .. }) && error.hint().is_some(), "{text}");
        }
        File::create(&file.0).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(file.read(), Err(StateError::TooLarge { .. })));
    }

    #[test]
    fn a_check_is_due_once_a_day() {
        let mut state = State::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(state.is_check_due(at(0)));
        state.note_check(at(1000));
        assert!(!state.is_check_due(at(1000 + 24 * 3600 - 1)));
        assert!(state.is_check_due(at(1000 + 24 * 3600)));
        assert!(state.is_check_due(at(999)), "a clock that went back does not stop checks");
    }

    #[test]
    fn only_one_update_runs_at_a_time() {
        let (_folder, file) = in_folder();
        let held = file.lock().unwrap();
        assert!(matches!(file.lock(), Err(StateError::Busy)));
        drop(held);
        assert!(file.lock().is_ok());
    }
}
