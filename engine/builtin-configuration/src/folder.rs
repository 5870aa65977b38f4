//! Entries as YAML files in a folder, one each, which people may edit.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::entry::{Entry, MAX_BYTES, check_id};
use crate::watch::FolderWatch;

pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    fn file(&self, id: &str) -> PathBuf {
        self.path.join(format!("{id}.yaml"))
    }

    /// Whether there is a file, readable or not.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.file(id).exists()
    }

    /// Every file that is an entry; the others are left out, with a warning each.
    pub(crate) fn read_all(&self) -> BTreeMap<String, Entry> {
        let Ok(files) = fs::read_dir(&self.path) else { return BTreeMap::new() };
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        let paths = paths.filter(|path| path.extension() == Some(OsStr::new("yaml")));
        paths.filter_map(|path| read(&path)).map(|entry| (entry.id.clone(), entry)).collect()
    }

    /// Replaces the entry's file; it is on disk when this returns.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        let text = serde_saphyr::to_string(entry).map_err(io::Error::other)?;
        // What could not be read again (nested too deep, say) would be gone at the next start.
        let read = serde_saphyr::from_str::<Entry>(&text).map_err(io::Error::other)?;
        if read != *entry {
            return Err(io::Error::other("it cannot be written as YAML without a change"));
        }
        let mut file = tempfile::Builder::new().prefix(".").tempfile_in(&self.path)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.file(&entry.id)).map_err(|error| error.error)?;
        File::open(&self.path)?.sync_all()
    }

    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub(crate) fn watch(&self) -> notify::Result<FolderWatch> {
        FolderWatch::begin(&self.path, |_| true)
    }
}

fn read(path: &Path) -> Option<Entry> {
    let id = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    let told = |problem: String| warn!(file = %path.display(), problem, "a configuration file is left out");
    if let Err(error) = check_id(id) {
        told(error.message);
        return None;
    }
    let long = fs::metadata(path).is_ok_and(|file| file.len() > 4 * MAX_BYTES as u64);
    if long {
        told(format!("it has more than {} bytes", 4 * MAX_BYTES));
        return None;
    }
    let entry = fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_saphyr::from_str::<Entry>(&text).map_err(|error| error.to_string()));
    match entry {
        // The name of the file is what counts.
        Ok(entry) => Some(Entry { id: id.to_owned(), ..entry }),
        Err(problem) => {
            told(problem);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(id: &str, value: serde_json::Value) -> Entry {
        Entry {
            id: id.into(),
            name: "N".into(),
            description: "D: with # signs".into(),
            schema: json!({ "type": "object" }),
            value,
            metadata: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Folder::open(folder.path().join("deep/down")).expect("a folder");
        for value in [
            json!({ "a": "${X:1}", "b": [1, 2.5, null, "no", "1", "\n# x: y"] }),
            json!(null),
            json!("true"),
            json!({}),
        ] {
            files.write(&entry("one", value.clone())).expect("written");
            assert_eq!(files.read_all()["one"], entry("one", value));
        }
        files.remove("one").expect("removed");
        files.remove("one").expect("nothing to remove");
        assert!(files.read_all().is_empty());
    }

    #[test]
    fn a_file_that_is_no_entry_does_not_hide_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Folder::open(folder.path().to_owned()).expect("a folder");
        files.write(&entry("good", json!(1))).expect("written");
        fs::write(folder.path().join("bad.yaml"), "{{{").expect("a file");
        fs::write(folder.path().join("Bad Name.yaml"), "id: x\n").expect("a file");
        assert_eq!(files.read_all().into_keys().collect::<Vec<_>>(), ["good"]);
    }

    #[tokio::test]
    async fn an_edit_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Folder::open(folder.path().to_owned()).expect("a folder");
        let mut watch = files.watch().expect("watched");
        files.write(&entry("one", json!(1))).expect("written");
        tokio::time::timeout(std::time::Duration::from_secs(20), watch.settled()).await.expect("in time");
    }
}
