//! Which digest a reference meant when it was last asked for: `tags.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::StoreError;
use crate::lock::Lock;

/// References kept; beyond it the one asked for longest ago goes.
const MAX_TAGS: usize = 10_000;

/// What a reference meant.
pub(crate) struct Tag {
    pub(crate) digest: Digest,
    pub(crate) checked: SystemTime,
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tags {
    #[serde(default)]
    tags: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    digest: String,
    /// Milliseconds since 1970.
    checked_ms: u64,
}

impl Tags {
    /// Reads the map of the store in `dir`. It is always complete, because it is replaced and never changed.
    pub(crate) fn read(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("tags.json");
        match fs::read(&path) {
            // A damaged map costs one question to the registry for each tag, and no image.
            Ok(raw) => Ok(serde_json::from_slice(&raw).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(StoreError { action: "read", path, source }),
        }
    }

    pub(crate) fn get(&self, reference: &str) -> Option<Tag> {
        let entry = self.tags.get(reference)?;
        let checked = UNIX_EPOCH.checked_add(Duration::from_millis(entry.checked_ms))?;
        Some(Tag { digest: Digest::parse(&entry.digest).ok()?, checked })
    }

    /// Writes down that `reference` means `digest` now.
    pub(crate) fn set(dir: &Path, reference: &str, digest: Digest) -> Result<(), StoreError> {
        let _only_writer = Lock::acquire_short(&dir.join("lock"))?;
        let mut all = Self::read(dir)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = Entry { digest: digest.to_string(), checked_ms: since_1970.as_millis() as u64 };
        all.tags.insert(reference.to_owned(), entry);
        if all.tags.len() > MAX_TAGS {
            let oldest = all.tags.iter().min_by_key(|(_, entry)| entry.checked_ms).map(|(name, _)| name.clone());
            oldest.and_then(|name| all.tags.remove(&name));
        }
        let path = dir.join("tags.json");
        let replace = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(dir.join("tmp"))?;
            file.write_all(&serde_json::to_vec_pretty(&all)?)?;
            file.as_file().sync_all()?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        replace().map_err(|source| StoreError { action: "write", path: path.clone(), source })
    }
}
