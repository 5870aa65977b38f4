//! Log lines that others can cause as often as they like, bounded: nobody floods the log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// Lines of one cause that are written within a [`PERIOD`].
const MAX_LINES: u32 = 10;

const PERIOD: Duration = Duration::from_secs(10);

/// Writes the first few lines of a period, and at its end one that says how many more there would have been. Clones
/// share the count.
#[derive(Debug, Clone)]
pub struct LogLimit(Arc<Limit>);

#[derive(Debug)]
struct Limit {
    cause: String,
    period: Mutex<Period>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Period {
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq)]
enum Verdict {
    Written,
    LeftOut,
    /// The first one: at `told_at` a line says how many there were.
    FirstLeftOut {
        told_at: Instant,
    },
}

impl LogLimit {
    /// `cause` is who or what the lines are about, in the log's words. Must be called inside a runtime.
    #[must_use]
    pub fn new(cause: impl Into<String>) -> Self {
        let (period, runtime) = (Mutex::default(), Handle::current());
        Self(Arc::new(Limit { cause: cause.into(), period, runtime }))
    }

    /// Has `line` write one, or counts it. Never waits.
    pub fn line(&self, line: impl FnOnce()) {
        let verdict = self.0.period().enter(Instant::now());
        match verdict {
            Verdict::Written => line(),
            Verdict::LeftOut => {}
            Verdict::FirstLeftOut { told_at } => {
                let limit = Arc::clone(&self.0);
                self.0.runtime.spawn(async move {
                    sleep_until(told_at).await;
                    let left_out = std::mem::take(&mut limit.period().left_out);
                    warn!(cause = limit.cause, left_out, "more lines like those before were left out");
                });
            }
        }
    }
}

impl Limit {
    fn period(&self) -> MutexGuard<'_, Period> {
        self.period.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Period {
    fn enter(&mut self, now: Instant) -> Verdict {
        let began = match self.began {
            Some(began) if now < began + PERIOD => began,
            Some(_) | None => {
                self.written = 0;
                *self.began.insert(now)
            }
        };
        if self.written < MAX_LINES {
            self.written += 1;
            return Verdict::Written;
        }
        self.left_out += 1;
        if self.left_out == 1 { Verdict::FirstLeftOut { told_at: began + PERIOD } } else { Verdict::LeftOut }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::time::advance;

    use super::*;

    /// A log that is kept.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
            let kept = Self::default();
            let writer = kept.clone();
            let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone());
            (kept, tracing::subscriber::set_default(log.finish()))
        }

        /// The lines since the last look.
        fn lines(&self) -> Vec<String> {
            let text = std::mem::take(&mut *self.0.lock().expect("no panic"));
            String::from_utf8(text).expect("text").lines().map(ToOwned::to_owned).collect()
        }
    }

    /// Lets everything run that is due.
    async fn pass(time: Duration) {
        advance(time).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_lines_a_few_are_written_and_the_rest_are_told_as_a_number() {
        let (kept, _guard) = Kept::begin();
        let limit = LogLimit::new("connection 7");
        for _ in 0..1000 {
            limit.clone().line(|| warn!("dropped"));
        }
        assert_eq!(kept.lines().len(), 10);
        pass(PERIOD).await;
        let told = kept.lines();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("left out") && told[0].contains("connection 7"), "{told:?}");
        assert!(told[0].contains("left_out=990"), "{told:?}");
        limit.line(|| warn!("dropped"));
        assert_eq!(kept.lines().len(), 1, "a new period");
        pass(2 * PERIOD).await;
        assert!(kept.lines().is_empty(), "nothing was left out");
    }

    #[tokio::test(start_paused = true)]
    async fn each_period_of_a_flood_has_its_few_lines_and_no_line_is_forgotten() {
        let (kept, _guard) = Kept::begin();
        let limit = LogLimit::new("c");
        for _ in 0..600 {
            limit.line(|| warn!("dropped"));
            pass(PERIOD / 100).await;
        }
        pass(PERIOD).await;
        let lines = kept.lines();
        let number = |line: &String| line.rsplit_once("left_out=").map(|(_, count)| count.trim().parse::<usize>());
        let told: Vec<usize> = lines.iter().filter_map(number).map(|count| count.expect("a number")).collect();
        assert_eq!(told.len(), 6, "{lines:?}");
        let written = lines.len() - told.len();
        assert_eq!(written, 60);
        assert_eq!(written + told.iter().sum::<usize>(), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_are_rare_are_all_written() {
        let (kept, _guard) = Kept::begin();
        let limit = LogLimit::new("c");
        for _ in 0..100 {
            limit.line(|| warn!("dropped"));
            pass(PERIOD / 9).await;
        }
        assert_eq!(kept.lines().len(), 100);
    }

    #[tokio::test]
    async fn a_thread_without_a_runtime_may_log() {
        let limit = LogLimit::new("c");
        let flood = move || (0..100).for_each(|_| limit.line(|| {}));
        std::thread::spawn(flood).join().expect("no panic");
    }
}
