//! `resourceMetrics`.

use std::sync::Arc;

use serde::Deserialize;

use super::{Items, KeyValue, Scalar, WireResource, WireScope, attributes, request, resource, scope};
use crate::attribute::Budget;
use crate::metric::{Distribution, Kind, Metric, Point, PointValue};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    resource_metrics: Items<ResourceMetrics<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceMetrics<'a> {
    #[serde(borrow)]
    resource: Option<WireResource<'a>>,
    #[serde(borrow)]
    scope_metrics: Items<ScopeMetrics<'a>>,
}

#[derive(Deserialize)]
struct ScopeMetrics<'a> {
    #[serde(borrow)]
    scope: Option<WireScope<'a>>,
    #[serde(borrow)]
    metrics: Items<WireMetric<'a>>,
}

#[derive(Deserialize)]
struct WireMetric<'a> {
    #[serde(borrow, default)]
    name: Scalar<'a>,
    #[serde(borrow, default)]
    description: Scalar<'a>,
    #[serde(borrow, default)]
    unit: Scalar<'a>,
    #[serde(borrow)]
    gauge: Option<Data<'a>>,
    #[serde(borrow)]
    sum: Option<Data<'a>>,
    #[serde(borrow)]
    histogram: Option<Data<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    #[serde(borrow)]
    data_points: Items<WirePoint<'a>>,
    #[serde(borrow, default)]
    aggregation_temporality: Scalar<'a>,
    #[serde(borrow, default)]
    is_monotonic: Scalar<'a>,
}

/// A point of any kind: what its kind has not, is not there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePoint<'a> {
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
    #[serde(borrow, default)]
    start_time_unix_nano: Scalar<'a>,
    #[serde(borrow, default)]
    time_unix_nano: Scalar<'a>,
    #[serde(borrow)]
    as_int: Option<Scalar<'a>>,
    #[serde(borrow)]
    as_double: Option<Scalar<'a>>,
    #[serde(borrow, default)]
    count: Scalar<'a>,
    #[serde(borrow)]
    sum: Option<Scalar<'a>>,
    #[serde(borrow)]
    min: Option<Scalar<'a>>,
    #[serde(borrow)]
    max: Option<Scalar<'a>>,
    #[serde(borrow)]
    bucket_counts: Items<Scalar<'a>>,
    #[serde(borrow)]
    explicit_bounds: Items<Scalar<'a>>,
}

/// Reads a metric export request that arrived at `now_unix_nano`, which stands in for times that are missing. Metrics
/// without a name, or of a kind we do not keep (exponential histograms, summaries), are left out.
///
/// # Errors
/// What is no JSON of this shape, or too much of it.
pub(crate) fn metrics(json: &str, now_unix_nano: u64) -> Result<Vec<Metric>, serde_json::Error> {
    let request: Request<'_> = request(json)?;
    let mut metrics = Vec::new();
    for from in request.resource_metrics.iter().flatten() {
        let resource = resource(&from.resource);
        for by in from.scope_metrics.iter().flatten() {
            let scope = scope(&by.scope);
            let read = by.metrics.iter().flatten().filter_map(|wire| metric(wire, now_unix_nano));
            metrics.extend(read.map(|metric| Metric {
                resource: Arc::clone(&resource),
                scope: Arc::clone(&scope),
                ..metric
            }));
        }
    }
    Ok(metrics)
}

fn metric(wire: &WireMetric<'_>, now_unix_nano: u64) -> Option<Metric> {
    let mut budget = Budget::new();
    let name = budget.text(&wire.name.text());
    if name.is_empty() {
        return None;
    }
    let (kind, data) = if let Some(data) = &wire.gauge {
        (Kind::Gauge, data)
    } else if let Some(data) = &wire.sum {
        let cumulative = data.aggregation_temporality.small() != DELTA;
        (Kind::Sum { monotonic: data.is_monotonic.truth(), cumulative }, data)
    } else if let Some(data) = &wire.histogram {
        (Kind::Histogram { cumulative: data.aggregation_temporality.small() != DELTA }, data)
    } else {
        return None;
    };
    let description = budget.text(&wire.description.text());
    let unit = budget.text(&wire.unit.text());
    let mut points = Vec::new();
    for wire in data.data_points.iter().flatten() {
        if !budget.entry() {
            break;
        }
        let value = match kind {
            Kind::Gauge | Kind::Sum { .. } => number(wire),
            Kind::Histogram { .. } => distribution(wire, &mut budget).map(PointValue::Distribution),
        };
        let Some(value) = value else { continue };
        points.push(Point {
            attributes: attributes(&wire.attributes, &mut budget),
            start_unix_nano: wire.start_time_unix_nano.unsigned(),
            time_unix_nano: Some(wire.time_unix_nano.unsigned()).filter(|time| *time != 0).unwrap_or(now_unix_nano),
            value,
        });
    }
    Some(Metric { name, description, unit, kind, points, resource: Arc::default(), scope: Arc::default() })
}

/// OTLP's number for it; anything else counts as cumulative.
const DELTA: i32 = 1;

fn number(wire: &WirePoint<'_>) -> Option<PointValue> {
    if let Some(number) = &wire.as_int {
        return Some(PointValue::Int(number.signed()));
    }
    wire.as_double.as_ref().and_then(Scalar::double).map(PointValue::Double)
}

/// A histogram is only one when it has a count more than bounds, and its bounds rise; without either it still has its
/// sum and count.
fn distribution(wire: &WirePoint<'_>, budget: &mut Budget) -> Option<Distribution> {
    let optional = |scalar: &Option<Scalar<'_>>| scalar.as_ref().and_then(Scalar::double);
    let mut buckets: Vec<u64> = Vec::new();
    let mut bounds: Vec<f64> = Vec::new();
    for count in wire.bucket_counts.iter().flatten() {
        if !budget.entry() {
            return None;
        }
        buckets.push(count.unsigned());
    }
    for bound in wire.explicit_bounds.iter().flatten() {
        bounds.push(bound.double()?);
        if bounds.len() > buckets.len() {
            return None;
        }
    }
    let rises = bounds.is_sorted_by(|low, high| low < high);
    if !(buckets.is_empty() && bounds.is_empty()) && (buckets.len() != bounds.len() + 1 || !rises) {
        return None;
    }
    Some(Distribution {
        count: wire.count.unsigned(),
        sum: optional(&wire.sum),
        min: optional(&wire.min),
        max: optional(&wire.max),
        buckets,
        bounds,
    })
}
