//! One file, its writer thread, and the changes that are written together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use redb::{Database, backends::InMemoryBackend};
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::transaction::{Reading, Writing};

/// Changes that are written in one transaction, at most.
const MAX_BATCH: usize = 4096;

/// Changes that wait for the writer; beyond that, whoever brings one waits.
const MAX_WAITING: usize = 16_384;

/// How long a file may be held by others before it cannot be opened.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);

/// Memory for pages of the file.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The file could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not {what} the store")]
pub struct StoreError {
    what: &'static str,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    pub(crate) fn new(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what, source: Arc::from(source.into()) }
    }
}

/// Ends a change: told after the sync whether it is stored.
type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Change = Box<dyn FnOnce(&mut Writing<'_>) -> Result<Done, StoreError> + Send>;

/// Durable tables in one file. Clones are the same store; its file is closed when the last is dropped.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    changes: SyncSender<Change>,
}

struct Place {
    /// None: in memory only.
    path: Option<PathBuf>,
    /// Empty after a failure, until the next one who needs it opens it anew.
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens or creates the file, and the folders it is in.
    ///
    /// # Errors
    /// It cannot be opened, is in use by another process, or is no store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| StoreError::new("create the folder of", source))?;
        }
        Self::start(Place { path: Some(path.to_owned()), database: RwLock::new(None) })
    }

    /// Keeps everything in memory: gone when the process ends.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::start(Place { path: None, database: RwLock::new(None) })
    }

    fn start(place: Place) -> Result<Self, StoreError> {
        let place = Arc::new(place);
        place.with(|_| Ok(()))?;
        let (changes, waiting) = sync_channel(MAX_WAITING);
        let writer = Arc::clone(&place);
        thread::Builder::new()
            .name("store".into())
            .spawn(move || write_all(&writer, &waiting))
            .map_err(|source| StoreError::new("start the writer of", source))?;
        Ok(Self { place, changes })
    }

    /// Looks at what is stored. Takes microseconds per row, and waits for no write. After a failure, `look` is called once
    /// more: the file may have failed under a write at that moment.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read<R>(&self, mut look: impl FnMut(&Reading) -> Result<R, StoreError>) -> Result<R, StoreError> {
        self.look(&mut look).or_else(|_| {
            self.place.close();
            self.look(&mut look)
        })
    }

    fn look<R>(&self, look: &mut impl FnMut(&Reading) -> Result<R, StoreError>) -> Result<R, StoreError> {
        use redb::ReadableDatabase as _;
        self.place.with(|database| {
            let transaction = database.begin_read().map_err(|error| StoreError::new("read", error))?;
            look(&Reading::new(transaction))
        })
    }

    /// Makes a change, on the writer's thread, and returns when it is on disk. `change` decides first and then writes:
    /// only a [`StoreError`] undoes what it wrote. Dropping the future does not take the change back.
    ///
    /// # Errors
    /// Nothing is stored.
    pub async fn write<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Writing<'_>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (told, answer) = oneshot::channel();
        let change: Change = Box::new(move |writing| {
            let result = change(writing)?;
            Ok(Box::new(move |stored: Result<(), StoreError>| {
                let _ = told.send(stored.map(|()| result));
            }))
        });
        let gone = || StoreError::new("write", io::Error::other("the change was undone with others of its batch"));
        match self.changes.try_send(change) {
            Ok(()) => {}
            Err(TrySendError::Full(change)) => {
                let changes = self.changes.clone();
                let handed = tokio::task::spawn_blocking(move || changes.send(change)).await;
                if !matches!(handed, Ok(Ok(()))) {
                    return Err(gone());
                }
            }
            Err(TrySendError::Disconnected(_)) => return Err(gone()),
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Place {
    /// Uses the file; it is opened anew after a failure.
    fn with<R>(&self, work: impl FnOnce(&Database) -> Result<R, StoreError>) -> Result<R, StoreError> {
        loop {
            if let Some(open) = &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
                return work(open);
            }
            let mut place = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if place.is_none() {
                *place = Some(self.open()?);
            }
        }
    }

    fn open(&self) -> Result<Database, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let opened = match &self.path {
            Some(path) => open_soon(&builder, path),
            None => builder.create_with_backend(InMemoryBackend::new()),
        };
        opened.map_err(|error| StoreError::new("open", error))
    }

    /// What failed may have left the file's pages in memory out of step with the disk. Waits until nobody uses it.
    fn close(&self) {
        if self.path.is_some() {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// A store of this process that was just dropped holds its file until its writer's thread is through.
fn open_soon(builder: &redb::Builder, path: &Path) -> Result<Database, redb::DatabaseError> {
    let begun = Instant::now();
    loop {
        match builder.create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < OTHERS_PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

/// The writer's thread: until the last [`Store`] is dropped.
fn write_all(place: &Place, waiting: &Receiver<Change>) {
    while let Ok(first) = waiting.recv() {
        let mut batch = vec![first];
        batch.extend(waiting.try_iter().take(MAX_BATCH - 1));
        write_batch(place, batch);
    }
}

fn write_batch(place: &Place, batch: Vec<Change>) {
    let mut done = Vec::with_capacity(batch.len());
    let written = place.with(|database| apply(database, batch, &mut done));
    if let Err(error) = &written {
        warn!(%error, cause = std::error::Error::source(error).map(ToString::to_string), "a write failed");
        // Before anybody is told: whoever reads then is to find what was stored.
        place.close();
    }
    for done in done {
        done(written.clone());
    }
}

fn apply(database: &Database, batch: Vec<Change>, done: &mut Vec<Done>) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(|error| StoreError::new("write", error))?;
    let mut writing = Writing::new(&transaction);
    for change in batch {
        match catch_unwind(AssertUnwindSafe(|| change(&mut writing))) {
            Ok(result) => done.push(result?),
            Err(_) => {
                // Half of it may be written: the batch is undone, its changes answer with an error.
                error!("a change panicked");
                return Err(StoreError::new("write", io::Error::other("a change panicked")));
            }
        }
    }
    drop(writing);
    transaction.commit().map_err(|error| StoreError::new("write", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Table;

    const TABLE: Table = Table("t");

    #[tokio::test]
    async fn what_was_acknowledged_is_there_when_the_file_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/down/store");
        let store = Store::open(&path).expect("a store");
        let before = store.write(|writing| writing.put(TABLE, b"a", b"1")).await.expect("written");
        assert_eq!(before, None);
        let before = store.write(|writing| writing.put(TABLE, b"a", b"2")).await.expect("written");
        assert_eq!(before.as_deref(), Some(&b"1"[..]));
        drop(store);
        let store = Store::open(&path).expect("the same store");
        assert_eq!(store.read(|reading| reading.get(TABLE, b"a")).expect("read").as_deref(), Some(&b"2"[..]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_at_once_are_applied_one_after_another() {
        let store = Store::in_memory().expect("a store");
        let adding = (0..1000).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(|writing| {
                        let before = writing.get(TABLE, b"n")?.map_or(0, |bytes| bytes.len());
                        writing.put(TABLE, b"n", &vec![b'x'; before + 1])?;
                        Ok(before)
                    })
                    .await
            })
        });
        let mut seen = Vec::new();
        for adding in adding.collect::<Vec<_>>() {
            seen.push(adding.await.expect("no panic").expect("written"));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_that_panics_is_undone_and_the_next_is_not() {
        let store = Store::in_memory().expect("a store");
        let failed = store
            .write(|writing| {
                writing.put(TABLE, b"half", b"1")?;
                if true {
                    panic!("on purpose");
                }
                Ok(())
            })
            .await;
        assert!(failed.is_err());
        store.write(|writing| writing.put(TABLE, b"whole", b"1")).await.expect("written");
        let rows = store.read(|reading| reading.scan(TABLE, b"", 10)).expect("read");
        assert_eq!(rows, [(b"whole".to_vec(), b"1".to_vec())]);
    }

    #[tokio::test]
    async fn a_scan_ends_with_its_prefix() {
        let store = Store::in_memory().expect("a store");
        store
            .write(|writing| {
                for key in ["a", "b1", "b2", "c"] {
                    writing.put(TABLE, key.as_bytes(), b"")?;
                }
                Ok(())
            })
            .await
            .expect("written");
        let keys = |prefix: &str, limit| {
            let rows = store.read(|reading| reading.scan(TABLE, prefix.as_bytes(), limit)).expect("read");
            rows.into_iter().map(|(key, _)| String::from_utf8(key).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(keys("b", 10), ["b1", "b2"]);
        assert_eq!(keys("", 3), ["a", "b1", "b2"]);
        assert!(keys("d", 10).is_empty());
    }

    #[tokio::test]
    async fn a_file_that_is_no_store_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        fs::write(&path, vec![7; 8192]).expect("a file");
        let error = Store::open(&path).err().expect("no store");
        assert!(error.to_string().contains("open"), "{error}");
    }
}
