//! What time it is, and when a schedule is due next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use cron::Schedule;

/// How far a clock may be set back without a time that has passed being due again.
const SLACK: TimeDelta = TimeDelta::minutes(1);

/// The wall clock.
pub(crate) trait Clock: Send + Sync + 'static {
    fn now(&self) -> DateTime<Utc>;
}

pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// A job's wait for its next time, as a function of what the clock says.
pub(crate) struct Wait<'a> {
    schedule: &'a Schedule,
    /// When the job was due last.
    last: Option<DateTime<Utc>>,
    seen: DateTime<Utc>,
    due: DateTime<Utc>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Due(DateTime<Utc>),
    Sleep(Duration),
    /// The schedule has no more times.
    Over,
}

impl<'a> Wait<'a> {
    /// `None`: the schedule has no more times.
    pub(crate) fn begin(schedule: &'a Schedule, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Self> {
        let due = next(schedule, last, now)?;
        Some(Self { schedule, last, seen: now, due })
    }

    pub(crate) fn step(&mut self, now: DateTime<Utc>, max_sleep: Duration) -> Step {
        if now >= self.due {
            return Step::Due(self.due);
        }
        if now < self.seen {
            // The clock was set back.
            match next(self.schedule, self.last, now) {
                Some(due) => self.due = due,
                None => return Step::Over,
            }
        }
        self.seen = now;
        Step::Sleep((self.due - now).to_std().unwrap_or_default().min(max_sleep))
    }
}

fn next(schedule: &Schedule, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let passed = last.filter(|last| *last > now && *last - now < SLACK);
    schedule.after(&passed.unwrap_or(now)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(time: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(&format!("2026-03-01T{time}Z")).expect("a time").to_utc()
    }

    fn every_minute() -> Schedule {
        "0 * * * * *".parse().expect("an expression")
    }

    #[test]
    fn a_job_sleeps_until_it_is_due_and_no_longer_than_a_minute() {
        let daily: Schedule = "0 0 12 * * *".parse().expect("an expression");
        let mut wait = Wait::begin(&daily, None, at("11:58:30")).expect("a time");
        assert_eq!(wait.step(at("11:58:30"), MINUTE), Step::Sleep(MINUTE));
        assert_eq!(wait.step(at("11:59:30.250"), MINUTE), Step::Sleep(Duration::from_millis(29_750)));
        assert_eq!(wait.step(at("12:00:00"), MINUTE), Step::Due(at("12:00:00")));
    }

    #[test]
    fn a_clock_that_jumps_ahead_makes_a_job_due_once() {
        let schedule = every_minute();
        let mut wait = Wait::begin(&schedule, None, at("10:00:30")).expect("a time");
        assert_eq!(wait.step(at("13:00:10"), MINUTE), Step::Due(at("10:01:00")));
        let mut wait = Wait::begin(&schedule, Some(at("10:01:00")), at("13:00:10")).expect("a time");
        assert_eq!(wait.step(at("13:00:10"), MINUTE), Step::Sleep(Duration::from_secs(50)));
    }

    #[test]
    fn a_clock_that_is_set_back_is_followed() {
        let schedule = every_minute();
        let mut wait = Wait::begin(&schedule, Some(at("10:00:00")), at("10:00:30")).expect("a time");
        assert_eq!(wait.step(at("08:00:50"), MINUTE), Step::Sleep(Duration::from_secs(10)));
        assert_eq!(wait.step(at("08:01:00"), MINUTE), Step::Due(at("08:01:00")));
    }

    #[test]
    fn a_clock_that_is_corrected_by_little_does_not_make_the_same_time_due_again() {
        let schedule = every_minute();
        let mut wait = Wait::begin(&schedule, Some(at("10:00:00")), at("09:59:59.990")).expect("a time");
        assert_eq!(wait.step(at("10:00:00"), MINUTE), Step::Sleep(MINUTE));
    }

    #[test]
    fn a_schedule_ends_with_its_last_year() {
        let past: Schedule = "0 0 0 1 1 * 2020".parse().expect("an expression");
        assert!(Wait::begin(&past, None, at("10:00:00")).is_none());
    }
}
