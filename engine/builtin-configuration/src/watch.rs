//! A folder that is watched for edits by hand.

use std::path::Path;
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// What was quiet for this long has been saved.
const QUIET: Duration = Duration::from_millis(500);

/// Watches the files of one folder, not of folders in it, until it is dropped.
pub struct FolderWatch {
    touches: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl FolderWatch {
    /// `concerns` says which files count.
    ///
    /// # Errors
    /// The folder cannot be watched.
    pub fn begin(folder: &Path, concerns: impl Fn(&Path) -> bool + Send + 'static) -> notify::Result<Self> {
        let (touched, touches) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_change(&event, &concerns)) {
                // A word that waits already says it.
                let _ = touched.try_send(());
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self { touches, _watcher: watcher })
    }

    /// Waits for a change, and until there are no more for a moment; for ever when there can be none. A change that a
    /// dropped wait has seen is not told again.
    pub async fn settled(&mut self) {
        if self.touches.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        while let Ok(Some(())) = timeout(QUIET, self.touches.recv()).await {}
    }
}

fn is_change(event: &Event, concerns: impl Fn(&Path) -> bool) -> bool {
    // After an overflow nobody knows what has changed.
    event.need_rescan() || (!event.kind.is_access() && event.paths.iter().any(|path| concerns(path)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use notify::EventKind;
    use notify::event::{AccessKind, CreateKind, Flag};

    use super::*;

    fn is_ours(path: &Path) -> bool {
        path.ends_with("config.yaml")
    }

    #[test]
    fn reading_and_other_files_are_no_change() {
        let created = |path: &str| Event::new(EventKind::Create(CreateKind::File)).add_path(path.into());
        let read = Event::new(EventKind::Access(AccessKind::Read)).add_path("/a/config.yaml".into());
        assert!(!is_change(&read, is_ours));
        assert!(!is_change(&created("/a/other"), is_ours));
        assert!(is_change(&created("/a/config.yaml"), is_ours));
        assert!(is_change(&created("/a/other").add_path("/a/config.yaml".into()), is_ours));
        assert!(is_change(&Event::new(EventKind::Other).set_flag(Flag::Rescan), is_ours));
    }

    #[tokio::test]
    async fn an_editor_that_replaces_the_file_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watch = FolderWatch::begin(folder.path(), is_ours).expect("watched");
        for text in ["a", "b"] {
            fs::write(folder.path().join(".draft"), text).expect("a file");
            fs::rename(folder.path().join(".draft"), folder.path().join("config.yaml")).expect("replaced");
            timeout(Duration::from_secs(20), watch.settled()).await.expect("in time");
        }
    }
}
