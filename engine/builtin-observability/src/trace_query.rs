//! `engine::traces::list` and `engine::traces::group_by`, over spans as they are kept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::attribute::find;
use crate::id::TraceId;
use crate::span::Span;
use crate::time::{Overflow, millis_to_nanos, nanos_to_millis};

const DEFAULT_LIMIT: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SortBy {
    StartTime,
    #[serde(alias = "duration_ms")]
    Duration,
    ServiceName,
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SortOrder {
    Asc,
    Desc,
}

/// What is asked for; times in milliseconds.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct List {
    trace_id: Option<String>,
    offset: Option<usize>,
    limit: Option<usize>,
    service_name: Option<String>,
    name: Option<String>,
    status: Option<String>,
    min_duration_ms: Option<f64>,
    max_duration_ms: Option<f64>,
    start_time: Option<u64>,
    end_time: Option<u64>,
    sort_by: Option<SortBy>,
    sort_order: Option<SortOrder>,
    attributes: Option<Vec<(String, String)>>,
    include_internal: Option<bool>,
    search_all_spans: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GroupBy {
    attribute: String,
    since_ms: Option<u64>,
    limit: Option<usize>,
    include_internal: Option<bool>,
}

impl List {
    /// A page of the spans that fit; newest first unless asked otherwise. Only roots, unless all are searched.
    ///
    /// # Errors
    /// A time that is no number of nanoseconds.
    pub(crate) fn answer<'a>(&self, spans: impl Iterator<Item = &'a Arc<Span>>) -> Result<Value, Overflow> {
        let not_before = self.start_time.map(millis_to_nanos).transpose()?;
        let not_after = self.end_time.map(millis_to_nanos).transpose()?;
        let mut found: Vec<&Arc<Span>> = spans.filter(|span| self.fits(span, not_before, not_after)).collect();
        self.sort(&mut found);
        let offset = self.offset.unwrap_or(0);
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        let page: Vec<_> = found.iter().skip(offset).take(limit).map(|span| span.json(span.parent)).collect();
        Ok(json!({"spans": page, "total": found.len(), "offset": offset, "limit": limit}))
    }

    fn fits(&self, span: &Span, not_before: Option<u64>, not_after: Option<u64>) -> bool {
        let duration_ms = span.duration_nanos() as f64 / 1e6;
        let within = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| text.to_lowercase().contains(&wanted.to_lowercase()))
        };
        let has = |(name, value): &(String, String)| {
            find(&span.attributes, name).is_some_and(|attribute| attribute.text() == *value)
        };
        (self.search_all_spans == Some(true) || span.parent.is_none())
            && (self.include_internal == Some(true) || !span.is_internal())
            && self.trace_id.as_ref().is_none_or(|id| TraceId::parse(id) == Some(span.trace_id))
            && within(&self.service_name, span.service_name())
            && within(&self.name, &span.name)
            && self.status.as_ref().is_none_or(|status| status.eq_ignore_ascii_case(span.status.name()))
            && self.min_duration_ms.is_none_or(|least| duration_ms >= least)
            && self.max_duration_ms.is_none_or(|most| duration_ms <= most)
            && not_before.is_none_or(|time| span.end_unix_nano.max(span.start_unix_nano) >= time)
            && not_after.is_none_or(|time| span.start_unix_nano <= time)
            && self.attributes.iter().flatten().all(has)
    }

    fn sort(&self, spans: &mut [&Arc<Span>]) {
        match self.sort_by.unwrap_or(SortBy::StartTime) {
            SortBy::StartTime => spans.sort_by_key(|span| span.start_unix_nano),
            SortBy::Duration => spans.sort_by_key(|span| span.duration_nanos()),
            SortBy::ServiceName => spans.sort_by(|one, other| one.service_name().cmp(other.service_name())),
            SortBy::Name => spans.sort_by(|one, other| one.name.cmp(&other.name)),
        }
        if self.sort_order.unwrap_or(SortOrder::Desc) == SortOrder::Desc {
            spans.reverse();
        }
    }
}

#[derive(Default)]
struct Group {
    traces: BTreeSet<TraceId>,
    spans: usize,
    errors: usize,
    first_unix_nano: u64,
    last_unix_nano: u64,
}

impl GroupBy {
    /// Spans that carry the attribute, by its value; the one seen last first.
    ///
    /// # Errors
    /// A time that is no number of nanoseconds.
    pub(crate) fn answer<'a>(&self, spans: impl Iterator<Item = &'a Arc<Span>>) -> Result<Value, Overflow> {
        let since = self.since_ms.map(millis_to_nanos).transpose()?.unwrap_or(0);
        let mut groups: HashMap<String, Group> = HashMap::new();
        for span in spans {
            let shown = self.include_internal == Some(true) || !span.is_internal();
            if !shown || span.start_unix_nano < since {
                continue;
            }
            let Some(value) = find(&span.attributes, &self.attribute) else { continue };
            let group = groups
                .entry(value.text().into_owned())
                .or_insert_with(|| Group { first_unix_nano: u64::MAX, ..Group::default() });
            group.traces.insert(span.trace_id);
            group.spans += 1;
            group.errors += usize::from(span.status == crate::span::Status::Error);
            group.first_unix_nano = group.first_unix_nano.min(span.start_unix_nano);
            group.last_unix_nano = group.last_unix_nano.max(span.end_unix_nano).max(span.start_unix_nano);
        }
        let mut groups: Vec<(String, Group)> = groups.into_iter().collect();
        groups.sort_by(|(one, this), (other, that)| {
            that.last_unix_nano.cmp(&this.last_unix_nano).then_with(|| one.cmp(other))
        });
        let page = groups.into_iter().take(self.limit.unwrap_or(DEFAULT_LIMIT)).map(|(value, group)| {
            json!({
                "value": value,
                "trace_ids": group.traces.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "span_count": group.spans,
                "first_seen_ms": nanos_to_millis(group.first_unix_nano),
                "last_seen_ms": nanos_to_millis(group.last_unix_nano),
                "duration_ms": nanos_to_millis(group.last_unix_nano - group.first_unix_nano),
                "error_count": group.errors,
            })
        });
        Ok(json!({"groups": page.collect::<Vec<_>>()}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::{AttributeValue, Resource};
    use crate::id::SpanId;
    use crate::span::Status;

    fn span(name: &str, service: &str, start_ms: u64, took_ms: u64) -> Span {
        let mut span = Span::new(TraceId::random(), SpanId::random(), name);
        span.start_unix_nano = start_ms * 1_000_000;
        span.end_unix_nano = (start_ms + took_ms) * 1_000_000;
        span.resource = Arc::new(Resource { service_name: service.into(), attributes: Vec::new() });
        span
    }

    fn text(value: &str) -> AttributeValue {
        AttributeValue::Text(value.into())
    }

    /// Three roots, a child, and one of the engine's own.
    fn spans() -> Vec<Arc<Span>> {
        let mut failed = span("charge card", "payments", 2000, 500);
        failed.status = Status::Error;
        failed.attributes = vec![("user".into(), text("ada")), ("tries".into(), AttributeValue::Int(3))];
        let mut child = span("query", "payments", 2100, 10);
        child.parent = Some(failed.span_id);
        child.trace_id = failed.trace_id;
        child.attributes = vec![("user".into(), text("ada"))];
        let mut internal = span("list", "iii", 4000, 1);
        internal.attributes = vec![("function_id".into(), text("engine::logs::list"))];
        let mut other = span("index", "web", 3000, 5);
        other.attributes = vec![("user".into(), text("bob"))];
        [span("home", "web", 1000, 20), failed, child, other, internal].into_iter().map(Arc::new).collect()
    }

    fn names(request: Value) -> Vec<String> {
        let list: List = serde_json::from_value(request).expect("a request");
        let answer = list.answer(spans().iter()).expect("an answer");
        let names = answer["spans"].as_array().expect("spans").iter();
        names.map(|span| span["name"].as_str().expect("a name").to_owned()).collect()
    }

    #[test]
    fn roots_are_listed_newest_first() {
        assert_eq!(names(json!({})), ["index", "charge card", "home"]);
        assert_eq!(names(json!({"sort_order": "asc", "limit": 1, "offset": 1})), ["charge card"]);
        assert_eq!(names(json!({"sort_by": "duration_ms"})), ["charge card", "home", "index"]);
        assert_eq!(names(json!({"sort_by": "name", "sort_order": "asc"})), ["charge card", "home", "index"]);
        assert_eq!(names(json!({"include_internal": true}))[0], "list");
    }

    #[test]
    fn each_filter_leaves_what_fits() {
        assert_eq!(names(json!({"service_name": "PAY"})), ["charge card"]);
        assert_eq!(names(json!({"name": "o"})), ["home"]);
        assert_eq!(names(json!({"status": "ERROR"})), ["charge card"]);
        assert_eq!(names(json!({"min_duration_ms": 10, "max_duration_ms": 100})), ["home"]);
        assert_eq!(names(json!({"start_time": 2400, "end_time": 2900})), ["charge card"]);
        assert_eq!(names(json!({"attributes": [["tries", "3"], ["user", "ada"]]})), ["charge card"]);
        assert_eq!(names(json!({"attributes": [["user", "ada"]], "search_all_spans": true})), ["query", "charge card"]);
        assert_eq!(names(json!({"trace_id": "nonsense"})), [""; 0]);
        assert_eq!(names(json!({"trace_id": null})).len(), 3);
    }

    #[test]
    fn a_time_beyond_nanoseconds_is_refused() {
        let list: List = serde_json::from_value(json!({"start_time": u64::MAX})).expect("a request");
        assert!(list.answer(spans().iter()).is_err());
    }

    #[test]
    fn groups_count_spans_and_errors_and_the_newest_is_first() {
        let request: GroupBy = serde_json::from_value(json!({"attribute": "user"})).expect("a request");
        let answer = request.answer(spans().iter()).expect("an answer");
        let groups = answer["groups"].as_array().expect("groups");
        assert_eq!(groups[0]["value"], "bob");
        let ada = &groups[1];
        assert_eq!((&ada["span_count"], &ada["error_count"]), (&json!(2), &json!(1)));
        assert_eq!(ada["trace_ids"].as_array().map(Vec::len), Some(1));
        assert_eq!(
            (&ada["first_seen_ms"], &ada["last_seen_ms"], &ada["duration_ms"]),
            (&json!(2000), &json!(2500), &json!(500))
        );
        let later: GroupBy = serde_json::from_value(json!({"attribute": "user", "since_ms": 2500})).expect("a request");
        assert_eq!(later.answer(spans().iter()).expect("an answer")["groups"].as_array().map(Vec::len), Some(1));
    }
}
