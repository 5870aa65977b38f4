//! Prometheus' text format 0.0.4: the engine's counts, and the newest of every series of the SDKs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use engine_builtin::Stats;

use crate::metric::{Distribution, Kind, PointValue};
use crate::metric_store::Series;

/// Series of SDKs that are shown.
pub(crate) const MAX_SERIES: usize = 10_000;

/// A label's text beyond this is cut off.
const MAX_LABEL_BYTES: usize = 1024;

/// What goes through this worker, for those who watch it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnCounts {
    pub(crate) spans_stored: u64,
    pub(crate) logs_stored: u64,
    pub(crate) metrics_stored: u64,
    pub(crate) frames_dropped: u64,
    pub(crate) frames_malformed: u64,
    pub(crate) export_dropped: u64,
}

/// Samples of one name stand together, under one type.
#[derive(Default)]
struct Families {
    families: BTreeMap<String, Family>,
}

struct Family {
    kind: &'static str,
    help: String,
    samples: String,
    seen: BTreeSet<String>,
}

/// The whole page.
pub(crate) fn page(version: &str, stats: &Stats, own: OwnCounts, series: &[Series<'_>]) -> String {
    let mut families = Families::default();
    engine(&mut families, version, stats, own);
    for one in series {
        sdk(&mut families, one);
    }
    families.text()
}

fn engine(families: &mut Families, version: &str, stats: &Stats, own: OwnCounts) {
    let none = || Labels::default();
    let counters = [
        ("iii_invocations_total", "Calls since the engine's start.", stats.calls),
        ("iii_invocations_succeeded_total", "Calls that were answered with a result.", stats.succeeded),
        ("iii_invocations_failed_total", "Calls that were answered with an error.", stats.failed),
        ("iii_invocations_deferred_total", "Calls handed to a queue.", stats.deferred),
        ("iii_workers_connected_total", "Workers that connected.", stats.workers_connected),
        ("iii_workers_left_total", "Workers that left.", stats.workers_left),
        ("iii_telemetry_frames_dropped_total", "Telemetry frames dropped since too many waited.", own.frames_dropped),
        ("iii_telemetry_frames_malformed_total", "Telemetry frames that could not be read.", own.frames_malformed),
        ("iii_telemetry_export_dropped_total", "Items that were not exported.", own.export_dropped),
    ];
    for (name, help, value) in counters {
        families.sample(name, "counter", help, &none(), value as f64);
    }
    let gauges = [
        ("iii_workers_active", "Workers connected now.", stats.workers_now),
        ("iii_spans_stored", "Spans kept.", own.spans_stored),
        ("iii_logs_stored", "Log records kept.", own.logs_stored),
        ("iii_metrics_stored", "Metrics kept.", own.metrics_stored),
    ];
    for (name, help, value) in gauges {
        families.sample(name, "gauge", help, &none(), value as f64);
    }
    families.sample("iii_build_info", "gauge", "The engine's version.", &none().with("version", version), 1.0);
    for (function, calls) in &stats.by_function {
        let labels = none().with("function_id", function);
        families.sample("iii_function_invocations_total", "counter", "Calls of a function.", &labels, *calls as f64);
    }
    let duration = Distribution {
        count: stats.durations_us.iter().map(|(_, count)| count).sum(),
        // Only buckets are known: the middle of each stands for what is in it.
        sum: Some(middle_sum(&stats.durations_us)),
        min: None,
        max: None,
        buckets: padded(&stats.durations_us),
        bounds: stats
            .durations_us
            .iter()
            .filter(|(bound, _)| *bound != u64::MAX)
            .map(|(us, _)| *us as f64 / 1e6)
            .collect(),
    };
    families.distribution("iii_invocation_duration_seconds", "How long calls took.", &none(), &duration);
}

/// One count more than bounds.
fn padded(durations_us: &[(u64, u64)]) -> Vec<u64> {
    let mut counts: Vec<u64> = durations_us.iter().map(|(_, count)| *count).collect();
    if durations_us.last().is_none_or(|(bound, _)| *bound != u64::MAX) {
        counts.push(0);
    }
    counts
}

fn middle_sum(durations_us: &[(u64, u64)]) -> f64 {
    let mut low = 0;
    let mut sum = 0.0;
    for (bound, count) in durations_us {
        let high = if *bound == u64::MAX { low } else { *bound };
        sum += f64::midpoint(low as f64, high as f64) / 1e6 * *count as f64;
        low = high;
    }
    sum
}

fn sdk(families: &mut Families, series: &Series<'_>) {
    let Series { metric, point } = series;
    let mut labels = Labels::default().with("service_name", metric.service_name());
    for (key, value) in &point.attributes {
        labels = labels.with(key, &value.text());
    }
    let name = name_of(&metric.name);
    let is_counter = metric.kind == Kind::Sum { monotonic: true, cumulative: true };
    match &point.value {
        PointValue::Distribution(distribution) if metric.kind == (Kind::Histogram { cumulative: true }) => {
            families.distribution(&name, &metric.description, &labels, distribution);
        }
        // What each export counts anew is no series that could be summed up by a reader.
        PointValue::Distribution(_) => {}
        PointValue::Int(_) | PointValue::Double(_) => {
            let value = point.value.number().unwrap_or(0.0);
            if is_counter {
                let name = if name.ends_with("_total") { name } else { name + "_total" };
                families.sample(&name, "counter", &metric.description, &labels, value);
            } else {
                families.sample(&name, "gauge", &metric.description, &labels, value);
            }
        }
    }
}

/// A metric's name as Prometheus allows it.
fn name_of(name: &str) -> String {
    let name = &name[..name.floor_char_boundary(MAX_LABEL_BYTES)];
    let mut plain: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() || letter == ':' { letter } else { '_' }).collect();
    if plain.starts_with(|first: char| first.is_ascii_digit()) {
        plain.insert(0, '_');
    }
    plain
}

/// Label names, once each, and their text.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Of two names that become the same the first stays.
    fn with(mut self, name: &str, value: &str) -> Self {
        let name = name_of(name).replace(':', "_");
        // Names with two underscores in front belong to Prometheus, `le` to histograms.
        let name =
            if name.is_empty() || name.starts_with("__") || name == "le" { format!("label_{name}") } else { name };
        let value = &value[..value.floor_char_boundary(MAX_LABEL_BYTES)];
        self.0.entry(name).or_insert_with(|| value.to_owned());
        self
    }

    fn text(&self, le: Option<&str>) -> String {
        let mut text = String::new();
        let all = self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(le.map(|le| ("le", le)));
        for (name, value) in all {
            let comma = if text.is_empty() { "" } else { "," };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{name}=\"{value}\"");
        }
        if text.is_empty() { text } else { format!("{{{text}}}") }
    }
}

impl Families {
    /// The family of a name, where these labels are not in it yet. Who comes first says what it is.
    fn family(&mut self, name: &str, kind: &'static str, help: &str, labels: &str) -> Option<&mut Family> {
        let family = self.families.entry(name.to_owned()).or_insert_with(|| Family {
            kind,
            help: help[..help.floor_char_boundary(MAX_LABEL_BYTES)].replace('\\', "\\\\").replace('\n', "\\n"),
            samples: String::new(),
            seen: BTreeSet::new(),
        });
        (family.kind == kind && family.seen.insert(labels.to_owned())).then_some(family)
    }

    fn sample(&mut self, name: &str, kind: &'static str, help: &str, labels: &Labels, value: f64) {
        let labels = labels.text(None);
        if let Some(family) = self.family(name, kind, help, &labels) {
            let _ = writeln!(family.samples, "{name}{labels} {}", number(value));
        }
    }

    fn distribution(&mut self, name: &str, help: &str, labels: &Labels, distribution: &Distribution) {
        let plain = labels.text(None);
        let Some(family) = self.family(name, "histogram", help, &plain) else { return };
        let mut below: u64 = 0;
        for (bound, count) in distribution.bounds.iter().zip(&distribution.buckets) {
            below = below.saturating_add(*count);
            let _ = writeln!(family.samples, "{name}_bucket{} {below}", labels.text(Some(&number(*bound))));
        }
        let count = distribution.count.max(below);
        let _ = writeln!(family.samples, "{name}_bucket{} {count}", labels.text(Some("+Inf")));
        let _ = writeln!(family.samples, "{name}_sum{plain} {}", number(distribution.sum.unwrap_or(0.0)));
        let _ = writeln!(family.samples, "{name}_count{plain} {count}");
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.families {
            if !family.help.is_empty() {
                let _ = writeln!(text, "# HELP {name} {}", family.help);
            }
            let _ = writeln!(text, "# TYPE {name} {}\n{}", family.kind, family.samples.trim_end());
        }
        text
    }
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::attribute::{AttributeValue, Resource};
    use crate::metric::{Metric, Point};

    fn metric(name: &str, kind: Kind, label: (&str, &str), value: PointValue) -> Metric {
        Metric {
            name: name.into(),
            description: "Two\nlines".into(),
            unit: String::new(),
            kind,
            points: vec![Point {
                attributes: vec![(label.0.into(), AttributeValue::Text(label.1.into()))],
                start_unix_nano: 0,
                time_unix_nano: 1,
                value,
            }],
            resource: Arc::new(Resource { service_name: "shop".into(), attributes: Vec::new() }),
            scope: Arc::default(),
        }
    }

    fn shown(metrics: &[Metric]) -> String {
        let series: Vec<_> = metrics.iter().map(|metric| Series { metric, point: &metric.points[0] }).collect();
        let mut families = Families::default();
        series.iter().for_each(|series| sdk(&mut families, series));
        families.text()
    }

    const COUNTER: Kind = Kind::Sum { monotonic: true, cumulative: true };

    #[test]
    fn names_and_labels_become_what_prometheus_reads() {
        let text = shown(&[metric("http.server.requests", COUNTER, ("http.route", "a\"b\\c\n"), PointValue::Int(3))]);
        assert_eq!(
            text,
            "# HELP http_server_requests_total Two\\nlines\n# TYPE http_server_requests_total counter\n\
             http_server_requests_total{http_route=\"a\\\"b\\\\c\\n\",service_name=\"shop\"} 3\n"
        );
    }

    #[test]
    fn a_histogram_has_rising_buckets_a_sum_and_a_count() {
        let distribution = Distribution {
            count: 6,
            sum: Some(1.5),
            min: None,
            max: None,
            buckets: vec![1, 2, 3],
            bounds: vec![0.1, 1.0],
        };
        let kind = Kind::Histogram { cumulative: true };
        let text = shown(&[metric("took", kind, ("le", "mine"), PointValue::Distribution(distribution))]);
        let values: Vec<&str> = text.lines().skip(2).map(|line| line.rsplit(' ').next().expect("a value")).collect();
        assert_eq!(values, ["1", "3", "6", "1.5", "6"]);
        assert!(text.contains("took_bucket{label_le=\"mine\",service_name=\"shop\",le=\"0.1\"} 1\n"), "{text}");
    }

    #[test]
    fn one_name_has_one_type_and_no_series_twice() {
        let text = shown(&[
            metric("a.b", Kind::Gauge, ("x", "1"), PointValue::Int(1)),
            metric("a_b", Kind::Gauge, ("x", "1"), PointValue::Int(2)),
            metric(
                "a_b",
                Kind::Histogram { cumulative: true },
                ("x", "2"),
                PointValue::Distribution(Distribution {
                    count: 1,
                    sum: None,
                    min: None,
                    max: None,
                    buckets: vec![],
                    bounds: vec![],
                }),
            ),
        ]);
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn the_engine_shows_what_it_counts() {
        let stats = Stats {
            calls: 5,
            by_function: vec![("a::b".into(), 5)],
            durations_us: vec![(1000, 4), (u64::MAX, 1)],
            ..Stats::default()
        };
        let text = page("1.2.3", &stats, OwnCounts::default(), &[]);
        for line in [
            "iii_invocations_total 5",
            "iii_function_invocations_total{function_id=\"a::b\"} 5",
            "iii_invocation_duration_seconds_bucket{le=\"0.001\"} 4",
            "iii_invocation_duration_seconds_bucket{le=\"+Inf\"} 5",
            "iii_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} in {text}");
        }
    }

    proptest! {
        /// Whatever SDKs call things, each line is one sample or comment.
        #[test]
        fn every_line_is_well_formed(name in "\\PC{0,12}", key in "\\PC{0,8}", value in "[^x]{0,12}") {
            let text = shown(&[metric(&name, Kind::Gauge, (&key, &value), PointValue::Double(1.0))]);
            for line in text.split('\n').filter(|line| !line.is_empty()) {
                let ok = line.starts_with("# ") || (line.ends_with(" 1") && line.contains('{') && line.contains('}'));
                prop_assert!(ok, "{}", line);
            }
        }
    }
}
