//! The commands in their order, again after each change.

use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::group::End;
use crate::run::Run;
use crate::watch::Watch;

pub(crate) struct Pipeline {
    pub(crate) commands: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) watch: Option<Watch>,
}

enum Next {
    Again,
    Stop,
}

impl Pipeline {
    /// Until `stop` is cancelled; nothing of it runs then.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        loop {
            if let Some(watch) = &self.watch {
                watch.forget();
            }
            let next = match Run::begin(self.folder.clone()) {
                Ok(mut run) => {
                    let next = self.until_next(self.play(&mut run), &stop).await;
                    run.end().await;
                    next
                }
                Err(error) => {
                    error!(%error, "the commands are not run: their guard could not be started");
                    self.until_next(pending(), &stop).await
                }
            };
            match next {
                Next::Again if !stop.is_cancelled() => info!("the commands are run again"),
                Next::Again | Next::Stop => return,
            }
        }
    }

    async fn until_next(&self, playing: impl Future<Output = Infallible>, stop: &CancellationToken) -> Next {
        let changed = async {
            match &self.watch {
                Some(watch) => watch.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            // Losing it leaves processes running, which `Run` ends.
            never = playing => match never {},
            () = changed => Next::Again,
            () = stop.cancelled() => Next::Stop,
        }
    }

    /// All commands; and then nothing for ever, as what they left behind may go on.
    async fn play(&self, run: &mut Run) -> Infallible {
        let count = self.commands.len();
        for (number, command) in (1..).zip(&self.commands) {
            let is_last = number == count;
            info!(command, number, count, "command started");
            match run.command(command).await {
                Ok(End::Exited(0)) if !is_last => info!(command, number, count, "command done"),
                Ok(end) if is_last => log_last(command, end),
                Ok(end) => {
                    error!(command, number, count, "command {}: the ones after it are not run", told(end));
                    break;
                }
                Err(error) => {
                    error!(command, number, count, %error, "command could not be run, nor are the ones after it");
                    break;
                }
            }
        }
        pending().await
    }
}

fn log_last(command: &str, end: End) {
    match end {
        End::Exited(0) => info!(command, "the last command {}: it is not started again", told(end)),
        End::Exited(_) | End::Killed(_) => warn!(command, "the last command {}: it is not started again", told(end)),
    }
}

fn told(end: End) -> String {
    match end {
        End::Exited(code) => format!("exited with status {code}"),
        // Those of real time have no names.
        End::Killed(number) => match Signal::try_from(number) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {number}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_by_status_or_signal() {
        assert_eq!(told(End::Exited(3)), "exited with status 3");
        assert_eq!(told(End::Killed(9)), "was ended by SIGKILL");
        assert_eq!(told(End::Killed(40)), "was ended by signal 40");
    }
}
