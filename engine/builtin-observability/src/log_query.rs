//! `engine::logs::list`, over logs as they are kept.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::log::LogRecord;
use crate::time::{Overflow, millis_to_nanos, nanos_to_millis};

/// What is asked for; times in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct List {
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    severity_min: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    severity_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

impl List {
    /// A page of the records that fit, newest first; without a limit, all of them.
    ///
    /// # Errors
    /// A time that is no number of nanoseconds.
    pub(crate) fn answer<'a>(
        &self,
        now_unix_nano: u64,
        records: impl Iterator<Item = &'a Arc<LogRecord>>,
    ) -> Result<Value, Overflow> {
        let not_before = self.start_time.map(millis_to_nanos).transpose()?.unwrap_or(0);
        let not_after = self.end_time.map(millis_to_nanos).transpose()?.unwrap_or(u64::MAX);
        let is = |wanted: &Option<String>, id: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| id.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(wanted)))
        };
        let fits = |record: &&Arc<LogRecord>| {
            (not_before..=not_after).contains(&record.time_unix_nano)
                && is(&self.trace_id, &record.trace_id)
                && is(&self.span_id, &record.span_id)
                && self.severity_min.is_none_or(|least| record.severity.number >= least)
                && self.severity_text.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&record.severity.text))
        };
        let mut found: Vec<&Arc<LogRecord>> = records.filter(fits).collect();
        found.sort_by_key(|record| record.time_unix_nano);
        let page = found.iter().rev().skip(self.offset.unwrap_or(0)).take(self.limit.unwrap_or(usize::MAX));
        Ok(json!({
            "logs": page.map(|record| record.json()).collect::<Vec<_>>(),
            "total": found.len(),
            "query": self,
            "timestamp": nanos_to_millis(now_unix_nano),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Level;

    fn record(body: &str, level: Level, time_ms: u64, trace_id: Option<&str>) -> Arc<LogRecord> {
        Arc::new(LogRecord {
            time_unix_nano: time_ms * 1_000_000,
            observed_unix_nano: time_ms * 1_000_000,
            severity: level.severity(),
            body: body.into(),
            attributes: Vec::new(),
            trace_id: trace_id.map(str::to_owned),
            span_id: None,
            resource: Arc::default(),
            scope: Arc::default(),
        })
    }

    fn bodies(request: Value) -> Vec<String> {
        let list: List = serde_json::from_value(request).expect("a request");
        let records = [
            record("a", Level::Info, 10, Some("t1")),
            record("c", Level::Error, 30, Some("T1")),
            record("b", Level::Warn, 20, None),
        ];
        let answer = list.answer(0, records.iter()).expect("an answer");
        let logs = answer["logs"].as_array().expect("logs").iter();
        logs.map(|log| log["body"].as_str().expect("a body").to_owned()).collect()
    }

    #[test]
    fn records_are_filtered_and_come_newest_first() {
        assert_eq!(bodies(json!({})), ["c", "b", "a"]);
        assert_eq!(bodies(json!({"severity_min": 13})), ["c", "b"]);
        assert_eq!(bodies(json!({"severity_text": "warn"})), ["b"]);
        assert_eq!(bodies(json!({"trace_id": "t1"})), ["c", "a"]);
        assert_eq!(bodies(json!({"span_id": "s"})), [""; 0]);
        assert_eq!(bodies(json!({"start_time": 11, "end_time": 30})), ["c", "b"]);
        assert_eq!(bodies(json!({"offset": 1, "limit": 1})), ["b"]);
    }
}
