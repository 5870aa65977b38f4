//! The engine's own counts, in every shape they are asked for.

use std::sync::Arc;

use engine_builtin::Stats;
use serde_json::{Map, Value, json};

use crate::attribute::Resource;
use crate::metric::{Kind, Metric, Point, PointValue};

const COUNTER: Kind = Kind::Sum { monotonic: true, cumulative: true };

/// The names under which alerts and rollups know the engine's counts.
fn named(stats: &Stats) -> [(&'static str, Kind, u64); 7] {
    [
        ("iii.invocations.total", COUNTER, stats.calls),
        ("iii.invocations.success", COUNTER, stats.succeeded),
        ("iii.invocations.error", COUNTER, stats.failed),
        ("iii.invocations.deferred", COUNTER, stats.deferred),
        ("iii.workers.spawns", COUNTER, stats.workers_connected),
        ("iii.workers.deaths", COUNTER, stats.workers_left),
        ("iii.workers.active", Kind::Gauge, stats.workers_now),
    ]
}

/// The engine's counts as metrics among the others.
pub(crate) fn sampled(
    stats: &Stats,
    now_unix_nano: u64,
    started_unix_nano: u64,
    resource: &Arc<Resource>,
) -> Vec<Metric> {
    let metric = |(name, kind, count): (&str, Kind, u64)| Metric {
        name: name.to_owned(),
        description: String::new(),
        unit: String::new(),
        kind,
        points: vec![Point {
            attributes: Vec::new(),
            start_unix_nano: started_unix_nano,
            time_unix_nano: now_unix_nano,
            value: PointValue::Int(i64::try_from(count).unwrap_or(i64::MAX)),
        }],
        resource: Arc::clone(resource),
        scope: Arc::default(),
    };
    named(stats).into_iter().map(metric).collect()
}

/// `engine_metrics` of `engine::metrics::list`.
pub(crate) fn json(stats: &Stats) -> Value {
    let by_function: Map<String, Value> =
        stats.by_function.iter().map(|(function, calls)| (function.clone(), (*calls).into())).collect();
    let Durations { average, minimum, maximum, p50, p95, p99 } = Durations::of(&stats.durations_us);
    json!({
        "invocations": {
            "total": stats.calls,
            "success": stats.succeeded,
            "error": stats.failed,
            "deferred": stats.deferred,
            "by_function": by_function,
        },
        "workers": {
            "spawns": stats.workers_connected,
            "deaths": stats.workers_left,
            "active": stats.workers_now,
        },
        "performance": {
            "avg_duration_ms": average,
            "p50_duration_ms": p50,
            "p95_duration_ms": p95,
            "p99_duration_ms": p99,
            "min_duration_ms": minimum,
            "max_duration_ms": maximum,
        },
    })
}

/// In milliseconds, as exactly as buckets tell.
#[derive(Debug, Default, PartialEq)]
struct Durations {
    average: f64,
    minimum: f64,
    maximum: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Durations {
    fn of(buckets: &[(u64, u64)]) -> Self {
        // A bucket without an upper end says no more than that it lies above the one before.
        let mut low = 0;
        let spans: Vec<(f64, f64, u64)> = buckets
            .iter()
            .map(|(bound, count)| {
                let high = if *bound == u64::MAX { low } else { *bound };
                let span = (low as f64 / 1e3, high as f64 / 1e3, *count);
                low = high;
                span
            })
            .filter(|(.., count)| *count > 0)
            .collect();
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Self::default() };
        let total: u64 = spans.iter().map(|(.., count)| count).sum();
        let sum: f64 = spans.iter().map(|(low, high, count)| f64::midpoint(*low, *high) * *count as f64).sum();
        let quantile = |share: f64| {
            let mut wanted = share * total as f64;
            for (low, high, count) in &spans {
                if wanted <= *count as f64 {
                    return low + (high - low) * wanted / *count as f64;
                }
                wanted -= *count as f64;
            }
            last.1
        };
        Self {
            average: sum / total as f64,
            minimum: first.0,
            maximum: last.1,
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let durations = Durations::of(&[(1000, 50), (2000, 0), (4000, 50), (u64::MAX, 0)]);
        assert_eq!((durations.minimum, durations.maximum), (0.0, 4.0));
        assert_eq!(durations.p50, 1.0);
        assert!((2.0..=4.0).contains(&durations.p95) && durations.p99 >= durations.p95);
        assert_eq!(durations.average, 0.5 * 0.5 + 0.5 * 3.0);
        assert_eq!(Durations::of(&[]), Durations::default());
    }

    #[test]
    fn the_last_bucket_without_an_end_is_no_infinity() {
        let durations = Durations::of(&[(1000, 1), (u64::MAX, 3)]);
        assert_eq!((durations.maximum, durations.p99), (1.0, 1.0));
    }
}
