//! Tells when a watched file has changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::glob::Globs;

/// A save is many events: they are over when this long there was none.
const QUIET: Duration = Duration::from_millis(200);

/// What never becomes quiet is acted on after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// A folder that cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("could not watch {}", folder.display())]
pub(crate) struct WatchError {
    folder: PathBuf,
    source: notify::Error,
}

pub(crate) struct Watch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    pub(crate) fn begin(globs: Globs, root: &Path) -> Result<Self, WatchError> {
        let failed = |folder: &Path| {
            let folder = folder.to_owned();
            |source| WatchError { folder, source }
        };
        let changed = Arc::new(Notify::new());
        let globs = Arc::new(globs);
        let (told, wanted) = (Arc::clone(&changed), Arc::clone(&globs));
        let on_event = move |event: notify::Result<Event>| match event {
            Ok(event) if concerns(&event, &wanted) => told.notify_one(),
            Ok(_) => {}
            Err(error) => warn!(%error, "a change of a watched file may have been missed"),
        };
        let mut watcher = notify::recommended_watcher(on_event).map_err(failed(root))?;
        for (folder, mode) in globs.folders() {
            watcher.watch(folder, mode).map_err(failed(folder))?;
        }
        Ok(Self { changed, _watcher: watcher })
    }

    /// Waits for a change, and until there are no more for a moment.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
        let deadline = Instant::now() + PATIENCE;
        while let Ok(Ok(())) = timeout_at(deadline, timeout(QUIET, self.changed.notified())).await {}
        info!("a watched file has changed");
    }

    /// Forgets changes so far: what is started next sees them anyway.
    pub(crate) fn forget(&self) {
        let _ = self.changed.notified().now_or_never();
    }
}

fn concerns(event: &Event, globs: &Globs) -> bool {
    // After an overflow nobody knows what has changed.
    event.need_rescan() || (is_change(event.kind) && event.paths.iter().any(|path| globs.matches(path)))
}

/// Reading is none, or what reads a watched file would be restarted for it.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(what) => !matches!(what, ModifyKind::Metadata(_)),
        EventKind::Access(how) => how == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Other => false,
    }
}
