//! A line for each update there is, at most once a day, before another program takes over.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use crate::clean::line;
use crate::commands::update::current_version;
use crate::programs::installed;
use crate::release::{Index, Server};
use crate::state::{StateError, StateFile};

/// How long whoever waits for the other program may be held up.
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks only where `III_UPDATE_URL` says where. Whatever goes wrong is not the user's business now.
pub(crate) async fn announce() {
    let Ok(file) = StateFile::of_user() else { return };
    let mut state = match file.read() {
        Ok(state) => state,
        Err(error @ (StateError::Damaged { .. } | StateError::TooLarge { .. })) => {
            eprintln!("warning: {}; `iii update` needs it deleted", line(&error.to_string()));
            return;
        }
        Err(_) => return,
    };
    let Some(url) = std::env::var("III_UPDATE_URL").ok().filter(|url| !url.is_empty()) else { return };
    let now = Timestamp::now();
    let Ok(_only_one) = file.lock() else { return };
    if !state.is_check_due(now) {
        return;
    }
    state.note_check(now);
    let Ok(()) = file.write(&state) else { return };
    let Some(index) = look(&url).await else { return };
    for target in installed() {
        let latest = index.version(target.program());
        if let (Some(current), Some(latest)) = (current_version(target, true, &state), latest)
            && current < *latest
        {
            eprintln!(
                "info: {} {latest} is there, this is {current}: `iii update {}`",
                target.program(),
                target.name()
            );
        }
    }
}

async fn look(url: &str) -> Option<Index> {
    let server = Server::at(url).ok()?;
    timeout(PATIENCE, server.index()).await.ok()?.ok()
}
