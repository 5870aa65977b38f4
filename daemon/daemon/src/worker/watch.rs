//! Tells which source files have changed, once their folder has been quiet for a moment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::EventKind;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::worker::source;

/// No further change for this long: whoever saves many files is done.
const QUIET: Duration = Duration::from_millis(80);

/// Changes that never pause are taken up after this long all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// Paths remembered singly; beyond it, everything counts as changed.
const MAX_PATHS: usize = 4096;

/// What has changed since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Relative to the root.
    Paths(BTreeSet<PathBuf>),
    /// Too much to name, or the kernel lost count.
    Everything,
}

/// Watches one folder, and below it all folders that matter. Links are not followed.
pub(crate) struct Watch {
    root: PathBuf,
    shared: Arc<Shared>,
    watcher: Option<RecommendedWatcher>,
    complained: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    paths: BTreeSet<PathBuf>,
    everything: bool,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Pending {
    fn touch(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// When it is to be taken up; `None` while there is nothing.
    fn due(&self) -> Option<Instant> {
        Some((self.last? + QUIET).min(self.first? + PATIENCE))
    }
}

impl Watch {
    /// A folder that cannot be watched is a warning: its worker runs, and is restarted by hand.
    pub(crate) fn start(root: &Path) -> Self {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let shared = Arc::new(Shared::default());
        let (on_event, below) = (Arc::clone(&shared), root.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => on_event.heed(&below, &event),
            Err(_) => on_event.lose_count(),
        });
        let watcher =
            watcher.inspect_err(|error| warn!(root = %root.display(), %error, "source cannot be watched")).ok();
        let mut watch = Self { root: root.clone(), shared, watcher, complained: false };
        watch.add(&root);
        watch
    }

    /// Watches `folder` and what is below it, as far as it matters.
    fn add(&mut self, folder: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
            && folder.is_dir()
            && !std::mem::replace(&mut self.complained, true)
        {
            warn!(folder = %folder.display(), %error, "changes in some folders will not be noticed");
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && path.strip_prefix(&self.root).is_ok_and(source::is_watched) {
                self.add(&path);
            }
        }
    }

    /// Waits for a change and for the quiet after it. Cancel safe: what was noticed is kept, and so is the time of it.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            self.watch_new_folders();
            let due = self.shared.pending().due();
            let Some(due) = due else {
                self.shared.wake.notified().await;
                continue;
            };
            if Instant::now() >= due {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.shared.wake.notified() => {}
            }
        }
        let pending = std::mem::take(&mut *self.shared.pending());
        if pending.everything { Change::Everything } else { Change::Paths(pending.paths) }
    }

    fn watch_new_folders(&mut self) {
        let paths: Vec<PathBuf> = self.shared.pending().paths.iter().map(|path| self.root.join(path)).collect();
        for path in paths {
            if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                self.add(&path);
            }
        }
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heed(&self, root: &Path, event: &Event) {
        if event.need_rescan() {
            return self.lose_count();
        }
        if matches!(event.kind, EventKind::Access(_) | EventKind::Other) {
            return;
        }
        let paths = event.paths.iter().filter_map(|path| path.strip_prefix(root).ok());
        let paths: Vec<_> = paths.filter(|path| !path.as_os_str().is_empty() && source::is_watched(path)).collect();
        if paths.is_empty() {
            return;
        }
        let mut pending = self.pending();
        pending.paths.extend(paths.into_iter().map(Path::to_owned));
        if pending.paths.len() > MAX_PATHS {
            pending.paths.clear();
            pending.everything = true;
        }
        pending.touch();
        drop(pending);
        self.wake.notify_one();
    }

    fn lose_count(&self) {
        let mut pending = self.pending();
        pending.everything = true;
        pending.touch();
        drop(pending);
        self.wake.notify_one();
    }
}

/// The next change, or never where nothing is watched.
pub(crate) async fn changed(watch: &mut Option<Watch>) -> Change {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(watch: &mut Watch) -> BTreeSet<String> {
        let change = tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect("a change");
        match change {
            Change::Paths(paths) => paths.into_iter().map(|path| path.display().to_string()).collect(),
            Change::Everything => panic!("the kernel lost count of a handful of files"),
        }
    }

    #[tokio::test]
    async fn saves_are_noticed_together_and_noise_is_not() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("node_modules/x")).expect("made");
        fs::create_dir(root.join("src")).expect("made");
        let mut watch = Watch::start(root);
        fs::write(root.join("node_modules/x/y"), "noise").expect("written");
        fs::write(root.join("a.py.swp"), "noise").expect("written");
        fs::write(root.join("src/a.py"), "1").expect("written");
        fs::write(root.join("b.py"), "1").expect("written");
        assert_eq!(next(&mut watch).await, ["b.py".to_owned(), "src/a.py".to_owned()].into());
        fs::read_to_string(root.join("b.py")).expect("reading is no change");
        fs::remove_file(root.join("b.py")).expect("removed");
        assert_eq!(next(&mut watch).await, ["b.py".to_owned()].into());
    }

    /// The supervisor looks at other things in between.
    #[tokio::test]
    async fn a_wait_that_is_cut_short_again_and_again_still_ends() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut watch = Watch::start(folder.path());
        fs::write(folder.path().join("a"), "1").expect("written");
        let mut rounds = 0;
        while tokio::time::timeout(QUIET / 4, watch.changed()).await.is_err() {
            rounds += 1;
            assert!(rounds < 1000, "never");
        }
    }

    #[tokio::test]
    async fn a_new_folder_is_watched_too() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut watch = Watch::start(folder.path());
        fs::create_dir_all(folder.path().join("new/deep")).expect("made");
        assert!(next(&mut watch).await.contains("new"));
        fs::write(folder.path().join("new/deep/file"), "1").expect("written");
        assert_eq!(next(&mut watch).await, ["new/deep/file".to_owned()].into());
    }
}
