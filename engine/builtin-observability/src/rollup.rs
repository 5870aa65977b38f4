//! Metrics summed up: a minute, five minutes and an hour at a time.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::attribute::object;
use crate::metric::{Distribution, Kind, Metric, Point, PointValue, distribution_json};
use crate::time::NANOS_PER_SECOND;

/// Entries of all levels together, and what they weigh; the oldest go.
const MAX_ENTRIES: usize = 20_000;
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What of each level is kept, in buckets.
const KEPT_BUCKETS: u64 = 180;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Minute,
    FiveMinutes,
    Hour,
}

impl Level {
    pub(crate) const ALL: [Self; 3] = [Self::Minute, Self::FiveMinutes, Self::Hour];

    /// As callers count them.
    pub(crate) fn of_number(number: u64) -> Option<Self> {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied()
    }

    fn number(self) -> u8 {
        match self {
            Self::Minute => 0,
            Self::FiveMinutes => 1,
            Self::Hour => 2,
        }
    }

    fn nanos(self) -> u64 {
        NANOS_PER_SECOND
            * match self {
                Self::Minute => 60,
                Self::FiveMinutes => 300,
                Self::Hour => 3600,
            }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    start_unix_nano: u64,
    level: Level,
    name: String,
    service: String,
    /// As JSON: what tells one series of a name from another.
    attributes: String,
}

impl Key {
    /// About what it takes in memory.
    fn weight(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.service.len() + self.attributes.len()
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Summary {
    Numbers { count: u64, sum: f64, min: f64, max: f64, last: f64 },
    Distribution(Distribution),
}

impl Summary {
    /// About what it takes in memory.
    fn weight(&self) -> usize {
        let buckets = match self {
            Self::Numbers { .. } => 0,
            Self::Distribution(distribution) => distribution.buckets_weight(),
        };
        size_of::<Self>() + buckets
    }
}

/// The rollups of everything that arrived, bounded by time, number and bytes.
#[derive(Default)]
pub(crate) struct Rollups {
    entries: BTreeMap<Key, Summary>,
    bytes: usize,
}

/// Which rollups are asked for.
pub(crate) struct Query<'a> {
    pub(crate) start_unix_nano: u64,
    pub(crate) end_unix_nano: u64,
    pub(crate) level: Level,
    pub(crate) name: Option<&'a str>,
}

impl Rollups {
    /// Adds a metric's points. Those of times that are not kept any more, or are yet to come, are left out.
    pub(crate) fn add(&mut self, now_unix_nano: u64, metric: &Metric) {
        for point in &metric.points {
            for level in Level::ALL {
                let start_unix_nano = point.time_unix_nano - point.time_unix_nano % level.nanos();
                let oldest = now_unix_nano.saturating_sub(KEPT_BUCKETS * level.nanos());
                if start_unix_nano < oldest || start_unix_nano > now_unix_nano.saturating_add(level.nanos()) {
                    continue;
                }
                let key = Key {
                    start_unix_nano,
                    level,
                    name: metric.name.clone(),
                    service: metric.service_name().to_owned(),
                    attributes: Value::Object(object(&point.attributes)).to_string(),
                };
                match self.entries.get_mut(&key) {
                    Some(summary) => {
                        let before = summary.weight();
                        merge(summary, point, metric.kind);
                        self.bytes = self.bytes - before + summary.weight();
                    }
                    None => {
                        let summary = first(point);
                        self.bytes += key.weight() + summary.weight();
                        self.entries.insert(key, summary);
                    }
                }
                self.shrink();
            }
        }
        self.expire(now_unix_nano);
    }

    pub(crate) fn expire(&mut self, now_unix_nano: u64) {
        let oldest = |level: Level| now_unix_nano.saturating_sub(KEPT_BUCKETS * level.nanos());
        // Keys are in the order of time: below the shortest level's bound lies all that may be too old.
        if self.entries.first_key_value().is_some_and(|(key, _)| key.start_unix_nano < oldest(key.level)) {
            self.entries.retain(|key, summary| {
                let stays = key.start_unix_nano >= oldest(key.level);
                if !stays {
                    self.bytes -= key.weight() + summary.weight();
                }
                stays
            });
        }
    }

    fn shrink(&mut self) {
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some((key, summary)) = self.entries.pop_first() else { return };
            self.bytes -= key.weight() + summary.weight();
        }
    }

    /// Numbers, and histograms, oldest first.
    pub(crate) fn list(&self, query: &Query<'_>) -> (Vec<Value>, Vec<Value>) {
        let (mut numbers, mut histograms) = (Vec::new(), Vec::new());
        let from = query.start_unix_nano.saturating_sub(query.level.nanos() - 1);
        for (key, summary) in &self.entries {
            let wanted = key.level == query.level
                && (from..=query.end_unix_nano).contains(&key.start_unix_nano)
                && query.name.is_none_or(|name| name == key.name);
            if !wanted {
                continue;
            }
            match summary {
                Summary::Numbers { .. } => numbers.push(entry_json(key, summary)),
                Summary::Distribution(_) => histograms.push(entry_json(key, summary)),
            }
        }
        (numbers, histograms)
    }
}

fn first(point: &Point) -> Summary {
    match &point.value {
        PointValue::Distribution(distribution) => Summary::Distribution(distribution.clone()),
        PointValue::Int(_) | PointValue::Double(_) => {
            let number = point.value.number().unwrap_or(0.0);
            Summary::Numbers { count: 1, sum: number, min: number, max: number, last: number }
        }
    }
}

fn merge(summary: &mut Summary, point: &Point, kind: Kind) {
    match (&mut *summary, &point.value) {
        (Summary::Distribution(total), PointValue::Distribution(more))
            if kind == (Kind::Histogram { cumulative: false }) && total.bounds == more.bounds =>
        {
            add(total, more);
        }
        (Summary::Numbers { count, sum, min, max, last }, PointValue::Int(_) | PointValue::Double(_)) => {
            let number = point.value.number().unwrap_or(0.0);
            *count += 1;
            *sum += number;
            *min = min.min(number);
            *max = max.max(number);
            *last = number;
        }
        // A cumulative histogram holds all that came before it; one of another shape begins anew.
        (summary, _) => *summary = first(point),
    }
}

fn add(total: &mut Distribution, more: &Distribution) {
    let both = |one: Option<f64>, other: Option<f64>, join: fn(f64, f64) -> f64| match (one, other) {
        (Some(one), Some(other)) => Some(join(one, other)),
        (one, other) => one.or(other),
    };
    total.count = total.count.saturating_add(more.count);
    total.sum = both(total.sum, more.sum, |one, other| one + other);
    total.min = both(total.min, more.min, f64::min);
    total.max = both(total.max, more.max, f64::max);
    for (total, more) in total.buckets.iter_mut().zip(&more.buckets) {
        *total = total.saturating_add(*more);
    }
}

fn entry_json(key: &Key, summary: &Summary) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
    set("metric_name", key.name.as_str().into());
    set("service_name", key.service.as_str().into());
    set("attributes", serde_json::from_str(&key.attributes).unwrap_or_default());
    set("level", key.level.number().into());
    set("bucket_start_unix_nano", key.start_unix_nano.into());
    set("bucket_end_unix_nano", key.start_unix_nano.saturating_add(key.level.nanos()).into());
    match summary {
        Summary::Numbers { count, sum, min, max, last } => {
            set("count", (*count).into());
            for (name, number) in
                [("sum", *sum), ("min", *min), ("max", *max), ("avg", sum / (*count).max(1) as f64), ("last", *last)]
            {
                set(name, json!(number));
            }
        }
        Summary::Distribution(distribution) => object.extend(distribution_json(distribution)),
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attribute::AttributeValue;

    const MINUTE: u64 = 60 * NANOS_PER_SECOND;

    fn metric(kind: Kind, time_unix_nano: u64, value: PointValue) -> Metric {
        Metric {
            name: "m".into(),
            description: String::new(),
            unit: String::new(),
            kind,
            points: vec![Point { attributes: Vec::new(), start_unix_nano: 0, time_unix_nano, value }],
            resource: Arc::default(),
            scope: Arc::default(),
        }
    }

    fn list(rollups: &Rollups, level: Level, start: u64, end: u64) -> (Vec<Value>, Vec<Value>) {
        rollups.list(&Query { start_unix_nano: start, end_unix_nano: end, level, name: None })
    }

    #[test]
    fn points_of_one_bucket_become_one_entry_at_each_level() {
        let mut rollups = Rollups::default();
        let base = 7200 * NANOS_PER_SECOND;
        for (time, value) in [(0, 1.0), (30, 5.0), (60, 3.0), (301, 7.0)] {
            let time = base + time * NANOS_PER_SECOND;
            rollups.add(time, &metric(Kind::Gauge, time, PointValue::Double(value)));
        }
        let end = base + 10 * MINUTE;
        let counts = |level| {
            let (numbers, histograms) = list(&rollups, level, base, end);
            assert!(histograms.is_empty());
            numbers.iter().map(|entry| entry["count"].as_u64().expect("a count")).collect::<Vec<_>>()
        };
        assert_eq!(counts(Level::Minute), [2, 1, 1]);
        assert_eq!(counts(Level::FiveMinutes), [3, 1]);
        assert_eq!(counts(Level::Hour), [4]);
        let (hour, _) = list(&rollups, Level::Hour, base, end);
        assert_eq!((&hour[0]["min"], &hour[0]["max"], &hour[0]["avg"]), (&json!(1.0), &json!(7.0), &json!(4.0)));
    }

    #[test]
    fn series_with_other_attributes_stay_apart() {
        let mut rollups = Rollups::default();
        for label in ["a", "b"] {
            let mut metric = metric(Kind::Gauge, MINUTE, PointValue::Int(1));
            metric.points[0].attributes.push(("x".into(), AttributeValue::Text(label.into())));
            rollups.add(MINUTE, &metric);
        }
        assert_eq!(list(&rollups, Level::Minute, 0, MINUTE).0.len(), 2);
    }

    #[test]
    fn delta_histograms_add_up_and_of_cumulative_ones_the_last_counts() {
        let one = |count| {
            PointValue::Distribution(Distribution {
                count,
                sum: Some(2.0),
                min: Some(1.0),
                max: Some(count as f64),
                buckets: vec![count, 0],
                bounds: vec![10.0],
            })
        };
        for (cumulative, total) in [(false, 3), (true, 2)] {
            let mut rollups = Rollups::default();
            rollups.add(MINUTE, &metric(Kind::Histogram { cumulative }, MINUTE, one(1)));
            rollups.add(MINUTE, &metric(Kind::Histogram { cumulative }, MINUTE + 1, one(2)));
            let (_, histograms) = list(&rollups, Level::Minute, 0, 2 * MINUTE);
            assert_eq!(histograms[0]["count"], total);
            assert_eq!(histograms[0]["bucket_counts"][0], total);
        }
    }

    #[test]
    fn old_buckets_go_and_times_to_come_are_not_believed() {
        let mut rollups = Rollups::default();
        let now = 1000 * 3600 * NANOS_PER_SECOND;
        rollups.add(now, &metric(Kind::Gauge, now, PointValue::Int(1)));
        rollups.add(now, &metric(Kind::Gauge, u64::MAX, PointValue::Int(1)));
        rollups.add(now, &metric(Kind::Gauge, 0, PointValue::Int(1)));
        assert_eq!(rollups.entries.len(), 3);
        rollups.expire(now + KEPT_BUCKETS * 3600 * NANOS_PER_SECOND + MINUTE);
        assert_eq!(rollups.entries.len(), 0);
    }

    #[test]
    fn entries_are_bounded() {
        let mut rollups = Rollups::default();
        for number in 0..MAX_ENTRIES {
            let mut metric = metric(Kind::Gauge, MINUTE, PointValue::Int(1));
            metric.name = format!("m{number}");
            rollups.add(MINUTE, &metric);
        }
        assert_eq!(rollups.entries.len(), MAX_ENTRIES);
    }

    fn weighed(rollups: &Rollups) -> usize {
        rollups.entries.iter().map(|(key, summary)| key.weight() + summary.weight()).sum()
    }

    #[test]
    fn bytes_are_bounded_and_counted_as_entries_come_change_and_go() {
        let mut rollups = Rollups::default();
        for minute in 1..200 {
            let mut metric = metric(Kind::Gauge, minute * MINUTE, PointValue::Int(1));
            metric.points[0].attributes.push(("x".into(), AttributeValue::Text("y".repeat(MAX_BYTES / 100))));
            rollups.add(minute * MINUTE, &metric);
            assert!(rollups.bytes <= MAX_BYTES, "{}", rollups.bytes);
        }
        assert!(rollups.entries.len() > 10, "{}", rollups.entries.len());
        assert_eq!(rollups.bytes, weighed(&rollups));
        let buckets = |count| Distribution {
            count: 1,
            sum: None,
            min: None,
            max: None,
            buckets: vec![0; count],
            bounds: Vec::new(),
        };
        let now = 200 * MINUTE;
        for count in [10, 1000, 0] {
            let value = PointValue::Distribution(buckets(count));
            rollups.add(now, &metric(Kind::Histogram { cumulative: true }, now, value));
            assert_eq!(rollups.bytes, weighed(&rollups));
        }
        rollups.expire(now + 2 * KEPT_BUCKETS * 60 * MINUTE);
        assert_eq!((rollups.entries.len(), rollups.bytes), (0, 0));
    }
}
