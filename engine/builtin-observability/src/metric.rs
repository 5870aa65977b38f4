//! A metric as it is kept: one name's points from one export.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::attribute::{Attributes, Resource, Scope, object, origin_weight, weight};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gauge,
    Sum { monotonic: bool, cumulative: bool },
    Histogram { cumulative: bool },
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Sum { .. } => "sum",
            Self::Histogram { .. } => "histogram",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) sum: Option<f64>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    /// One more than `bounds`, or none.
    pub(crate) buckets: Vec<u64>,
    pub(crate) bounds: Vec<f64>,
}

impl Distribution {
    /// What it takes in memory besides itself.
    pub(crate) fn buckets_weight(&self) -> usize {
        size_of_val(&*self.buckets) + size_of_val(&*self.bounds)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PointValue {
    Int(i64),
    Double(f64),
    Distribution(Distribution),
}

impl PointValue {
    /// Of a plain number.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            Self::Distribution(_) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) attributes: Attributes,
    pub(crate) start_unix_nano: u64,
    pub(crate) time_unix_nano: u64,
    pub(crate) value: PointValue,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metric {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) unit: String,
    pub(crate) kind: Kind,
    pub(crate) points: Vec<Point>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) scope: Arc<Scope>,
}

impl Metric {
    pub(crate) fn service_name(&self) -> &str {
        &self.resource.service_name
    }

    /// About what it takes in memory.
    pub(crate) fn weight(&self) -> usize {
        let point = |point: &Point| {
            let buckets = match &point.value {
                PointValue::Distribution(distribution) => distribution.buckets_weight(),
                PointValue::Int(_) | PointValue::Double(_) => 0,
            };
            size_of::<Point>() + weight(&point.attributes) + buckets
        };
        size_of::<Self>()
            + self.name.len()
            + self.description.len()
            + self.unit.len()
            + self.points.iter().map(point).sum::<usize>()
            + origin_weight(&self.resource, &self.scope)
    }

    /// One entry of `sdk_metrics`, with the points that `wanted` lets through; none when that is none of them.
    pub(crate) fn json(&self, wanted: impl Fn(&Point) -> bool) -> Option<Value> {
        let points: Vec<&Point> = self.points.iter().filter(|point| wanted(point)).collect();
        let latest = points.iter().map(|point| point.time_unix_nano).max()?;
        Some(json!({
            "name": self.name,
            "description": self.description,
            "unit": self.unit,
            "metric_type": self.kind.name(),
            "service_name": self.service_name(),
            "timestamp_unix_nano": latest,
            "data_points": points.into_iter().map(point_json).collect::<Vec<_>>(),
        }))
    }
}

fn point_json(point: &Point) -> Value {
    let mut object_ = Map::new();
    object_.insert("timestamp_unix_nano".to_owned(), point.time_unix_nano.into());
    object_.insert("attributes".to_owned(), object(&point.attributes).into());
    match &point.value {
        PointValue::Int(number) => drop(object_.insert("value".to_owned(), (*number).into())),
        PointValue::Double(number) => drop(object_.insert("value".to_owned(), (*number).into())),
        PointValue::Distribution(distribution) => object_.extend(distribution_json(distribution)),
    }
    Value::Object(object_)
}

pub(crate) fn distribution_json(distribution: &Distribution) -> Map<String, Value> {
    let Distribution { count, sum, min, max, buckets, bounds } = distribution;
    let fields: [(&str, Value); 6] = [
        ("count", (*count).into()),
        ("sum", (*sum).into()),
        ("min", (*min).into()),
        ("max", (*max).into()),
        ("bucket_counts", buckets.as_slice().into()),
        ("explicit_bounds", bounds.as_slice().into()),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
