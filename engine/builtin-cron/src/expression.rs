//! Cron expressions: `second minute hour day-of-month month day-of-week [year]`, in UTC.

use std::str::FromStr;

use cron::Schedule;

/// Longer than any that somebody wrote by hand.
const MAX_BYTES: usize = 1024;

const FIELDS: [&str; 7] = ["second", "minute", "hour", "day of month", "month", "day of week", "year"];

/// Why a text is no expression.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadExpression {
    #[error("the cron trigger has no `expression`")]
    Missing,
    #[error("the cron expression has {0} bytes, and at most {MAX_BYTES} are read")]
    TooLong(usize),
    #[error(
        "cron expression `{expression}` has {found} fields: it needs 6 (second minute hour day-of-month month \
         day-of-week), or 7 with a year"
    )]
    Fields { expression: String, found: usize },
    #[error("cron expression `{expression}`: `{value}` is no {field}")]
    Field { expression: String, field: &'static str, value: String },
    #[error("cron expression `{expression}`: {reason}")]
    Other { expression: String, reason: String },
}

pub(crate) fn parse(expression: &str) -> Result<Schedule, BadExpression> {
    let expression = expression.trim();
    if expression.is_empty() {
        return Err(BadExpression::Missing);
    }
    if expression.len() > MAX_BYTES {
        return Err(BadExpression::TooLong(expression.len()));
    }
    let fields: Vec<&str> = expression.split_whitespace().collect();
    if !expression.starts_with('@') && !(6..=7).contains(&fields.len()) {
        return Err(BadExpression::Fields { expression: expression.to_owned(), found: fields.len() });
    }
    Schedule::from_str(expression).map_err(|error| explain(expression, &fields, &error))
}

/// The parser says where it got stuck, not in which field: each is tried alone.
fn explain(expression: &str, fields: &[&str], error: &cron::error::Error) -> BadExpression {
    let expression = expression.to_owned();
    for (place, value) in fields.iter().enumerate().filter(|_| !expression.starts_with('@')) {
        let mut alone = ["*"; FIELDS.len()];
        alone[place] = value;
        if Schedule::from_str(&alone.join(" ")).is_err() {
            return BadExpression::Field { expression, field: FIELDS[place], value: (*value).to_owned() };
        }
    }
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    BadExpression::Other { expression, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, TimeZone, Utc};
    use proptest::prelude::*;

    fn start() -> DateTime<Utc> {
        // A Sunday.
        Utc.with_ymd_and_hms(2026, 3, 1, 0, 0, 0).single().expect("a time")
    }

    #[track_caller]
    fn check(expression: &str, first: &[&str]) {
        let schedule = parse(expression).expect("an expression");
        let times: Vec<String> = schedule.after(&start()).take(first.len()).map(|time| time.to_rfc3339()).collect();
        assert_eq!(times, first, "{expression}");
    }

    #[track_caller]
    fn refused(expression: &str, why: &str) {
        assert_eq!(parse(expression).expect_err("no expression").to_string(), why);
    }

    #[test]
    fn lists_ranges_steps_and_names_are_understood_in_utc() {
        check("*/20 * * * * *", &["2026-03-01T00:00:20+00:00", "2026-03-01T00:00:40+00:00"]);
        check("0 30 9,17 * * Mon-Fri", &["2026-03-02T09:30:00+00:00", "2026-03-02T17:30:00+00:00"]);
        check("0 0 0 1 JAN,jul *", &["2026-07-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00"]);
        check("0 0 6 ? * Sunday", &["2026-03-01T06:00:00+00:00", "2026-03-08T06:00:00+00:00"]);
        check("0 0 0 29 2 * 2027-2030", &["2028-02-29T00:00:00+00:00"]);
        check("@daily", &["2026-03-02T00:00:00+00:00"]);
    }

    #[test]
    fn what_is_no_expression_is_named_with_its_bad_field() {
        refused("  ", "the cron trigger has no `expression`");
        refused(
            "* * * * *",
            "cron expression `* * * * *` has 5 fields: it needs 6 (second minute hour day-of-month month \
             day-of-week), or 7 with a year",
        );
        refused("0 0 25 * * *", "cron expression `0 0 25 * * *`: `25` is no hour");
        refused("0 0 0 * * Blursday", "cron expression `0 0 0 * * Blursday`: `Blursday` is no day of week");
        refused("*/0 * * * * *", "cron expression `*/0 * * * * *`: `*/0` is no second");
        refused("99999999999 * * * * *", "cron expression `99999999999 * * * * *`: `99999999999` is no second");
        assert!(matches!(parse("@reboot"), Err(BadExpression::Other { .. })));
        assert!(matches!(parse(&"1,".repeat(1000)), Err(BadExpression::TooLong(2000))));
    }

    proptest! {
        /// Whatever is asked for, there is an answer, and times only go forward.
        #[test]
        fn any_text_is_an_expression_or_refused(text in "[0-9*/?,@ a-zA-Z-]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn times_go_forward(fields in prop::collection::vec(prop_oneof![
            Just("*".to_owned()), (0u32..60).prop_map(|n| n.to_string()), (1u32..12).prop_map(|n| format!("*/{n}")),
            (1u32..6, 6u32..8).prop_map(|(from, to)| format!("{from}-{to}")),
        ], 6..=6)) {
            if let Ok(schedule) = parse(&fields.join(" ")) {
                let times: Vec<_> = schedule.after(&start()).take(3).collect();
                prop_assert!(times.iter().all(|time| *time > start()));
                prop_assert!(times.is_sorted_by(|a, b| a < b));
            }
        }
    }
}
