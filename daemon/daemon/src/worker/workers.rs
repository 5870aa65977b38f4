//! All workers of a project: those that are declared, and those that run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use daemon_api::WorkerError;
use daemon_api::worker::{Phase, Source};
use guest_client::Guest;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::machine::BootProgress;
use crate::worker::disk;
use crate::worker::host::Host;
use crate::worker::lock;
use crate::worker::manifest::check_name;
use crate::worker::report::Report;
use crate::worker::store::{Entry, EntrySource, Store};
use crate::worker::supervisor::Handle;
use crate::worker::wanted::{Wanted, valid};

/// How long a roll-back waits for an operation that holds the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Workers {
    host: Arc<Host>,
    root: PathBuf,
    store: Store,
    running: Mutex<BTreeMap<String, Arc<Handle>>>,
    /// Entries that have been acted upon.
    known: Mutex<BTreeMap<String, Entry>>,
    /// When config.yaml was last changed, and its length, as of the last look.
    seen: Mutex<Option<(SystemTime, u64)>>,
}

/// What `add` did.
pub(crate) struct Added {
    pub(crate) name: String,
    pub(crate) status: &'static str,
    pub(crate) warnings: Vec<String>,
    /// `None` for a built-in worker.
    pub(crate) handle: Option<Arc<Handle>>,
    /// Nothing was kept of a worker of this name before.
    fresh: bool,
}

impl Workers {
    pub(crate) fn new(host: Arc<Host>, root: PathBuf, config_file: PathBuf) -> Self {
        Self {
            host,
            root,
            store: Store::new(config_file),
            running: Mutex::default(),
            known: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    pub(crate) fn config_path(&self) -> &Path {
        self.store.path()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn client(&self) -> &engine_client::Client {
        &self.host.client
    }

    pub(crate) fn logs(&self, name: &str) -> PathBuf {
        self.host.logs(name)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Handle>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handle(&self, name: &str) -> Option<Arc<Handle>> {
        self.running().get(name).cloned()
    }

    pub(crate) fn entries(&self) -> Result<Vec<Entry>, WorkerError> {
        self.store.entries()
    }

    /// The guest of a worker that runs.
    pub(crate) fn guest(&self, name: &str) -> Result<Guest, WorkerError> {
        valid(name)?;
        if self.handle(name).is_none() && self.store.find(name)?.is_none() {
            return Err(WorkerError::NotFound { name: name.to_owned() });
        }
        let guest = self.handle(name).and_then(|handle| handle.guest());
        guest.ok_or_else(|| WorkerError::NotRunning { name: name.to_owned() })
    }

    /// Follows config.yaml: starts what is new there, stops what is gone, restarts what has changed.
    pub(crate) async fn reconcile(&self) {
        let metadata = fs::metadata(self.store.path());
        let stamp = metadata.ok().and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        if std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), stamp) == stamp {
            return;
        }
        // Whoever holds the lock is changing the file, and acts on it.
        let Ok(_lock) = lock::take(&self.root) else {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return;
        };
        let entries = match self.store.entries() {
            Ok(entries) => entries,
            Err(error) => return warn!(%error, "config.yaml is not followed until it is mended"),
        };
        let ours: BTreeMap<String, Entry> = entries
            .into_iter()
            .filter(|entry| entry.source != EntrySource::Builtin && check_name(&entry.name).is_ok())
            .map(|entry| (entry.name.clone(), entry))
            .collect();
        let before = std::mem::replace(&mut *self.known(), ours.clone());
        for name in before.keys().filter(|name| !ours.contains_key(*name)) {
            info!(worker = name, "worker is gone from config.yaml");
            self.halt(name).await;
        }
        for (name, entry) in ours {
            if before.get(&name) == Some(&entry) {
                continue;
            }
            if before.contains_key(&name) {
                self.halt(&name).await;
            }
            if self.was_stopped(&name) {
                continue;
            }
            self.launch(entry);
        }
    }

    fn launch(&self, entry: Entry) -> Arc<Handle> {
        let name = entry.name.clone();
        let handle = Arc::new(Handle::start(Arc::clone(&self.host), entry));
        self.running().insert(name, Arc::clone(&handle));
        handle
    }

    /// Ends a worker if it runs.
    async fn halt(&self, name: &str) -> bool {
        let handle = self.running().remove(name);
        match handle {
            Some(handle) => {
                handle.stop().await;
                true
            }
            None => false,
        }
    }

    pub(crate) async fn stop_all(&self) {
        let all = std::mem::take(&mut *self.running());
        futures_util::future::join_all(all.values().map(|handle| handle.stop())).await;
    }

    /// A worker that was stopped by hand stays stopped over a restart of this daemon, not over one of the engine.
    fn was_stopped(&self, name: &str) -> bool {
        fs::read_to_string(self.stopped_mark(name)).is_ok_and(|engine| engine == engine_id())
    }

    fn stopped_mark(&self, name: &str) -> PathBuf {
        self.host.folder(name).join("stopped")
    }

    pub(crate) async fn add(
        &self,
        source: &Source,
        force: bool,
        reset_config: bool,
        progress: &watch::Sender<Option<Report>>,
    ) -> Result<Added, WorkerError> {
        let wanted = Wanted::of(source, &self.root)?;
        let _lock = lock::take(&self.root)?;
        let existing = self.store.find(&wanted.name)?;
        if let Some(existing) = &existing
            && !force
        {
            return Err(WorkerError::AlreadyExists { name: existing.name.clone() });
        }
        if let Some(image) = &wanted.image {
            // Before anything is written: an image that cannot be had leaves no trace.
            self.fetch(image, progress).await?;
        }
        let config = match (&existing, reset_config) {
            (Some(existing), false) => existing.config.clone(),
            _ => wanted.config,
        };
        let entry = Entry { name: wanted.name.clone(), source: wanted.source, config };
        self.halt(&entry.name).await;
        if existing.is_some() {
            self.wipe(&entry.name)?;
        }
        let fresh = !self.host.folder(&entry.name).exists();
        let _ = fs::remove_file(self.stopped_mark(&entry.name));
        self.known().insert(entry.name.clone(), entry.clone());
        if let Err(error) = self.store.put(&entry) {
            self.known().remove(&entry.name);
            return Err(error);
        }
        let handle = (entry.source != EntrySource::Builtin).then(|| self.launch(entry));
        let status = if existing.is_some() { "replaced" } else { "installed" };
        Ok(Added { name: wanted.name, status, warnings: wanted.warnings, handle, fresh })
    }

    async fn fetch(&self, image: &str, progress: &watch::Sender<Option<Report>>) -> Result<(), WorkerError> {
        let bad = |message: String| WorkerError::OciPull { reference: image.to_owned(), message };
        let reference = self.host.machines.resolve(image).map_err(|error| bad(error.to_string()))?;
        let report = |step: BootProgress| {
            if let BootProgress::Image(step) = step {
                progress.send_replace(Some(Report::of_image(image, step)));
            }
        };
        self.host.machines.image(&reference, &report).await.map(|_| ()).map_err(|error| bad(error.explain()))
    }

    /// Takes back an addition whose worker did not come up.
    pub(crate) async fn roll_back(&self, added: &Added) {
        let patience = Instant::now() + LOCK_PATIENCE;
        let lock = loop {
            match lock::take(&self.root) {
                Ok(lock) => break Some(lock),
                Err(_) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(_) => break None,
            }
        };
        // Somebody may have added it again meanwhile: then it is not ours to remove.
        let is_ours = |handle: &Arc<Handle>| added.handle.as_ref().is_some_and(|ours| Arc::ptr_eq(ours, handle));
        if lock.is_none() || !self.handle(&added.name).as_ref().is_some_and(is_ours) {
            return;
        }
        self.halt(&added.name).await;
        self.known().remove(&added.name);
        // A disk that was there before this addition is not part of it.
        let removed = self.store.remove(std::slice::from_ref(&added.name)).and_then(|()| match added.fresh {
            true => self.wipe(&added.name).map(|_| ()),
            false => Ok(()),
        });
        if let Err(error) = removed {
            warn!(worker = added.name, %error, "what was installed could not be removed");
        }
    }

    /// Removes what is kept of a worker besides its entry and logs; returns how many bytes that were.
    fn wipe(&self, name: &str) -> Result<u64, WorkerError> {
        let folder = self.host.folder(name);
        disk::wipe(&folder).map_err(|error| match error.kind() {
            ErrorKind::ResourceBusy => WorkerError::AlreadyRunning { name: name.to_owned(), pid: None },
            _ => WorkerError::Internal { message: format!("could not remove {}: {error}", folder.display()) },
        })
    }

    /// Removes the entries of `names`, or of all workers of ours, and ends them. Their disks stay.
    pub(crate) async fn remove(&self, names: &[String], all: bool) -> Result<Vec<String>, WorkerError> {
        let _lock = lock::take(&self.root)?;
        let entries = self.store.entries()?;
        let names = if all {
            entries
                .iter()
                .filter(|entry| entry.source != EntrySource::Builtin)
                .map(|entry| entry.name.clone())
                .collect()
        } else {
            names.to_vec()
        };
        for name in &names {
            if !entries.iter().any(|entry| entry.name == *name) {
                return Err(WorkerError::NotFound { name: name.clone() });
            }
        }
        self.store.remove(&names)?;
        for name in &names {
            self.known().remove(name);
            self.halt(name).await;
        }
        Ok(names)
    }

    pub(crate) async fn start(&self, name: &str) -> Result<Arc<Handle>, WorkerError> {
        valid(name)?;
        let _lock = lock::take(&self.root)?;
        let entry = self.store.find(name)?.ok_or_else(|| WorkerError::NotFound { name: name.to_owned() })?;
        if entry.source == EntrySource::Builtin {
            return Err(part_of_engine(name));
        }
        let _ = fs::remove_file(self.stopped_mark(name));
        if let Some(handle) = self.handle(name) {
            let phase = handle.report.borrow().phase;
            if !matches!(phase, Phase::Failed | Phase::Stopped | Phase::Stopping) {
                // It runs, or is on its way: what was asked for is so already.
                return Ok(handle);
            }
            self.halt(name).await;
        }
        self.known().insert(name.to_owned(), entry.clone());
        Ok(self.launch(entry))
    }

    /// Ends a worker; `false` when it did not run.
    pub(crate) async fn stop(&self, name: &str) -> Result<bool, WorkerError> {
        valid(name)?;
        let _lock = lock::take(&self.root)?;
        let entry = self.store.find(name)?;
        if entry.is_none() && self.handle(name).is_none() {
            return Err(WorkerError::NotFound { name: name.to_owned() });
        }
        if entry.is_some_and(|entry| entry.source == EntrySource::Builtin) {
            return Err(part_of_engine(name));
        }
        let folder = self.host.folder(name);
        let marked = fs::create_dir_all(&folder).and_then(|()| fs::write(self.stopped_mark(name), engine_id()));
        if let Err(error) = marked {
            warn!(worker = name, %error, "the worker will run again after a restart of the daemon");
        }
        Ok(self.halt(name).await)
    }

    /// Frees what is kept of stopped workers; returns how many bytes that were.
    pub(crate) async fn clear(&self, names: &[String], all: bool) -> Result<u64, WorkerError> {
        let _lock = lock::take(&self.root)?;
        let names: Vec<String> = if all {
            let folders = [self.host.folder(""), self.host.logs("")].map(|folder| fs::read_dir(folder).into_iter());
            let folders = folders.into_iter().flatten().flatten().flatten();
            let found = folders.filter_map(|entry| entry.file_name().into_string().ok());
            let found: BTreeSet<String> = found.filter(|name| self.handle(name).is_none()).collect();
            found.into_iter().collect()
        } else {
            names.to_vec()
        };
        let mut bytes = 0;
        for name in &names {
            valid(name)?;
            if let Some(handle) = self.handle(name) {
                return Err(WorkerError::AlreadyRunning { name: name.clone(), pid: handle.report.borrow().pid });
            }
            let logs = self.host.logs(name);
            bytes += self.wipe(name)? + disk::size(&logs);
            let _ = fs::remove_dir_all(logs);
        }
        Ok(bytes)
    }
}

/// Which engine this daemon belongs to: its pid, which a container may give to each engine anew, and when it started.
fn engine_id() -> String {
    let pid = std::env::var("III_ENGINE_PID").unwrap_or_else(|_| "none".into());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; the start time is the 20th field after it.
    let started = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(19)).unwrap_or("unknown");
    format!("{pid} {started}")
}

fn part_of_engine(name: &str) -> WorkerError {
    WorkerError::BadRequest {
        function_id: "worker::start".into(),
        reason: format!("`{name}` is part of the engine: it runs when the engine does"),
    }
}
