//! Metrics that are kept: the newest of each series, sums over a window, worker gauges.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::attribute::{AttributeValue, Attributes, find};
use crate::metric::{Kind, Metric, Point, PointValue};
use crate::ring::Ring;
use crate::rollup::Rollups;
use crate::time::{NANOS_PER_SECOND, nanos_to_millis};

/// How old a worker's gauges may be to be shown.
const GAUGES_FRESH_NANOS: u64 = 120 * NANOS_PER_SECOND;

pub(crate) struct MetricStore {
    ring: Ring<Metric>,
    rollups: Rollups,
}

/// One series' newest point.
pub(crate) struct Series<'a> {
    pub(crate) metric: &'a Metric,
    pub(crate) point: &'a Point,
}

impl MetricStore {
    pub(crate) fn new(limit: usize, retention_nanos: u64) -> Self {
        Self { ring: Ring::new(limit, Some(retention_nanos)), rollups: Rollups::default() }
    }

    pub(crate) fn push(&mut self, now_unix_nano: u64, metric: Arc<Metric>) {
        self.rollups.add(now_unix_nano, &metric);
        let weight = metric.weight();
        self.ring.push(now_unix_nano, metric, weight);
    }

    pub(crate) fn expire(&mut self, now_unix_nano: u64) {
        self.ring.expire(now_unix_nano);
        self.rollups.expire(now_unix_nano);
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn rollups(&self) -> &Rollups {
        &self.rollups
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Metric>> {
        self.ring.iter()
    }

    /// The newest point of every series, at most `limit` of them, by name.
    pub(crate) fn latest(&self, limit: usize) -> Vec<Series<'_>> {
        let mut seen: HashSet<(&str, &str, String)> = HashSet::new();
        let mut latest = Vec::new();
        for metric in self.ring.iter().rev() {
            for point in metric.points.iter().rev() {
                if latest.len() < limit && seen.insert((&metric.name, metric.service_name(), identity(point))) {
                    latest.push(Series { metric, point });
                }
            }
        }
        latest.sort_by(|one, other| one.metric.name.cmp(&other.metric.name));
        latest
    }

    /// What an alert compares: of counters what they rose by in the window, of gauges the newest value, of histograms
    /// the mean; added up over all series. None where there was nothing in the window.
    pub(crate) fn window(&self, now_unix_nano: u64, name: &str, window_nanos: u64) -> Option<f64> {
        let from = now_unix_nano.saturating_sub(window_nanos);
        let mut series: HashMap<(&str, String), (Kind, Vec<&Point>)> = HashMap::new();
        for metric in self.ring.iter().filter(|metric| metric.name == name) {
            for point in &metric.points {
                let key = (metric.service_name(), identity(point));
                series.entry(key).or_insert_with(|| (metric.kind, Vec::new())).1.push(point);
            }
        }
        let values = series.into_values().filter_map(|(kind, points)| windowed(kind, &points, from));
        values.reduce(|sum, value| sum + value)
    }

    /// A worker's own account of its memory and time, where it has given one of late.
    pub(crate) fn worker_gauges(&self, now_unix_nano: u64, worker_id: &str) -> Option<Value> {
        let fresh = now_unix_nano.saturating_sub(GAUGES_FRESH_NANOS);
        let mut gauges: BTreeMap<&'static str, f64> = BTreeMap::new();
        let (mut latest, mut runtime) = (0, None);
        let is_worker = |attributes: &Attributes| {
            find(attributes, "worker.id").is_some_and(|id| id.text().eq_ignore_ascii_case(worker_id))
        };
        for metric in self.ring.iter().rev() {
            let Some(field) = gauge_field(&metric.name) else { continue };
            let whole = is_worker(&metric.resource.attributes);
            for point in metric.points.iter().rev() {
                let Some(number) = point.value.number() else { continue };
                if point.time_unix_nano < fresh || !(whole || is_worker(&point.attributes)) {
                    continue;
                }
                gauges.entry(field).or_insert(number);
                latest = latest.max(point.time_unix_nano);
                runtime = runtime.or_else(|| runtime_of(&metric.resource.attributes));
            }
        }
        if gauges.is_empty() {
            return None;
        }
        let mut object: Map<String, Value> =
            gauges.into_iter().map(|(field, number)| (field.to_owned(), plain(field, number))).collect();
        object.insert("timestamp_ms".to_owned(), nanos_to_millis(latest).into());
        object.insert("runtime".to_owned(), runtime.unwrap_or_else(|| "unknown".to_owned()).into());
        Some(Value::Object(object))
    }

    /// Numbers of each name in steps of `step_nanos`.
    pub(crate) fn aggregated(&self, step_nanos: u64, wanted: impl Fn(&Metric, &Point) -> bool) -> Vec<Value> {
        let mut steps: BTreeMap<(&str, u64), Vec<f64>> = BTreeMap::new();
        for metric in self.ring.iter() {
            for point in metric.points.iter().filter(|point| wanted(metric, point)) {
                if let Some(number) = point.value.number() {
                    let start = point.time_unix_nano - point.time_unix_nano % step_nanos;
                    steps.entry((&metric.name, start)).or_default().push(number);
                }
            }
        }
        let entry = |((name, start), numbers): ((&str, u64), Vec<f64>)| {
            let sum: f64 = numbers.iter().sum();
            json!({
                "metric_name": name,
                "start_unix_nano": start,
                "end_unix_nano": start.saturating_add(step_nanos),
                "count": numbers.len(),
                "sum": sum,
                "avg": sum / numbers.len() as f64,
                "min": numbers.iter().copied().reduce(f64::min),
                "max": numbers.iter().copied().reduce(f64::max),
            })
        };
        steps.into_iter().map(entry).collect()
    }
}

/// What tells a series from others of its name.
fn identity(point: &Point) -> String {
    let mut attributes: Vec<(&str, String)> =
        point.attributes.iter().map(|(key, value)| (key.as_str(), value.json().to_string())).collect();
    attributes.sort();
    format!("{attributes:?}")
}

/// One series, oldest point first.
fn windowed(kind: Kind, points: &[&Point], from: u64) -> Option<f64> {
    let within: Vec<&&Point> = points.iter().filter(|point| point.time_unix_nano >= from).collect();
    let last = within.last()?;
    match kind {
        Kind::Gauge | Kind::Sum { monotonic: false, cumulative: true } => last.value.number(),
        Kind::Sum { cumulative: false, .. } => Some(within.iter().filter_map(|point| point.value.number()).sum()),
        Kind::Sum { monotonic: true, cumulative: true } => {
            let before = points.iter().rev().find(|point| point.time_unix_nano < from);
            // A series that began in the window rose from zero; of an older one the first that is left must do.
            let base = match before {
                Some(before) => before.value.number()?,
                None if last.start_unix_nano >= from => 0.0,
                None => within.first()?.value.number()?,
            };
            let value = last.value.number()?;
            // One that fell began anew.
            Some(if value >= base { value - base } else { value })
        }
        Kind::Histogram { .. } => match &last.value {
            PointValue::Distribution(distribution) if distribution.count > 0 => {
                Some(distribution.sum? / distribution.count as f64)
            }
            _ => None,
        },
    }
}

fn gauge_field(name: &str) -> Option<&'static str> {
    Some(match name {
        "iii.worker.memory.heap_used" => "memory_heap_used",
        "iii.worker.memory.heap_total" => "memory_heap_total",
        "iii.worker.memory.rss" => "memory_rss",
        "iii.worker.memory.external" => "memory_external",
        "iii.worker.cpu.user_micros" => "cpu_user_micros",
        "iii.worker.cpu.system_micros" => "cpu_system_micros",
        "iii.worker.cpu.percent" => "cpu_percent",
        "iii.worker.event_loop.lag_ms" => "event_loop_lag_ms",
        "iii.worker.uptime_seconds" => "uptime_seconds",
        _ => return None,
    })
}

/// Percentages, delays and durations have fractions; bytes and microseconds have none.
fn plain(field: &str, number: f64) -> Value {
    match field {
        "cpu_percent" | "event_loop_lag_ms" => json!(number),
        // A cast of a float saturates.
        _ if number.fract() == 0.0 => json!(number as i64),
        _ => json!(number),
    }
}

fn runtime_of(attributes: &Attributes) -> Option<String> {
    let name = find(attributes, "process.runtime.name").or_else(|| find(attributes, "telemetry.sdk.language"))?;
    match name {
        AttributeValue::Text(text) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn text(value: &str) -> AttributeValue {
        AttributeValue::Text(value.into())
    }

    fn metric(name: &str, kind: Kind, points: &[(u64, f64, &str)]) -> Arc<Metric> {
        let point = |(seconds, value, label): &(u64, f64, &str)| Point {
            attributes: vec![("worker.id".into(), text(label))],
            start_unix_nano: if *label == "new" { 70 * SECOND } else { 0 },
            time_unix_nano: seconds * SECOND,
            value: PointValue::Double(*value),
        };
        Arc::new(Metric {
            name: name.into(),
            description: String::new(),
            unit: String::new(),
            kind,
            points: points.iter().map(point).collect(),
            resource: Arc::default(),
            scope: Arc::default(),
        })
    }

    fn store(metrics: &[Arc<Metric>]) -> MetricStore {
        let mut store = MetricStore::new(100, 3600 * SECOND);
        metrics.iter().for_each(|metric| store.push(0, Arc::clone(metric)));
        store
    }

    #[test]
    fn a_window_holds_a_counters_rise_a_gauges_last_value_and_a_deltas_sum() {
        let counter = Kind::Sum { monotonic: true, cumulative: true };
        let delta = Kind::Sum { monotonic: true, cumulative: false };
        let store = store(&[
            metric(
                "counter",
                counter,
                &[(10, 100.0, "a"), (50, 104.0, "a"), (100, 110.0, "a"), (100, 3.0, "new"), (100, 900.0, "old")],
            ),
            metric("gauge", Kind::Gauge, &[(90, 5.0, "a"), (95, 2.0, "a"), (91, 1.0, "b")]),
            metric("delta", delta, &[(10, 9.0, "a"), (90, 5.0, "a"), (95, 2.0, "a")]),
        ]);
        let at = |name| store.window(100 * SECOND, name, 60 * SECOND);
        assert_eq!(at("counter"), Some(10.0 + 3.0));
        assert_eq!(at("gauge"), Some(3.0));
        assert_eq!(at("delta"), Some(7.0));
        assert_eq!(at("nothing"), None);
        assert_eq!(store.window(10_000 * SECOND, "gauge", 60 * SECOND), None);
    }

    #[test]
    fn the_newest_point_of_each_series_is_found() {
        let store = store(&[
            metric("g", Kind::Gauge, &[(1, 1.0, "a"), (1, 7.0, "b")]),
            metric("g", Kind::Gauge, &[(2, 2.0, "a")]),
        ]);
        let mut values: Vec<_> = store.latest(10).iter().filter_map(|series| series.point.value.number()).collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [2.0, 7.0]);
        assert_eq!(store.latest(1).len(), 1);
    }

    #[test]
    fn a_workers_gauges_are_the_newest_of_the_last_two_minutes() {
        let store = store(&[
            metric("iii.worker.memory.rss", Kind::Gauge, &[(1000, 1.0, "w1"), (1001, 4096.0, "w1"), (1001, 7.0, "w2")]),
            metric("iii.worker.cpu.percent", Kind::Gauge, &[(1002, 12.5, "w1")]),
            metric("iii.worker.uptime_seconds", Kind::Gauge, &[(10, 3.0, "w1")]),
        ]);
        let gauges = store.worker_gauges(1050 * SECOND, "w1").expect("gauges");
        assert_eq!(
            gauges,
            json!({"cpu_percent": 12.5, "memory_rss": 4096, "timestamp_ms": 1_002_000, "runtime": "unknown"})
        );
        assert_eq!(store.worker_gauges(2000 * SECOND, "w1"), None);
        assert_eq!(store.worker_gauges(1050 * SECOND, "w3"), None);
    }

    #[test]
    fn numbers_are_aggregated_in_steps() {
        let store = store(&[metric("g", Kind::Gauge, &[(1, 1.0, "a"), (9, 3.0, "a"), (10, 5.0, "a")])]);
        let steps = store.aggregated(10 * SECOND, |_, _| true);
        assert_eq!(steps.len(), 2);
        assert_eq!((&steps[0]["count"], &steps[0]["avg"], &steps[0]["max"]), (&json!(2), &json!(2.0), &json!(3.0)));
    }
}
