//! What is going on, on stderr: a moving line for people, plain lines for logs.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use daemon_api::worker::{Phase, Progress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::clean::line;

/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Steps {
    bar: Option<ProgressBar>,
    subject: String,
    last: Option<Phase>,
    start: Instant,
}

impl Steps {
    /// `quiet`: says nothing at all.
    pub(crate) fn of(subject: &str, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        let last = if quiet { None } else { Some(Phase::Stopped) };
        Self { bar, subject: subject.to_owned(), last, start: Instant::now() }
    }

    pub(crate) fn show(&mut self, step: &Progress) {
        let amount = match (step.done, step.total) {
            (Some(done), Some(total)) if total > 0 => format!(" {} of {} MiB", done >> 20, total >> 20),
            _ => String::new(),
        };
        let text = format!("{}: {}{amount}", self.subject, line(&step.message));
        match (&self.bar, self.last) {
            (Some(bar), _) => bar.set_message(text),
            (None, Some(last)) if last != step.phase => {
                eprintln!("[{:.1}s] {text}", self.start.elapsed().as_secs_f32())
            }
            (None, _) => {}
        }
        self.last = self.last.map(|_| step.phase);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Such as `0.9s`.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f32())
}
