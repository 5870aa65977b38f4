//! OTLP/JSON as SDKs write it, read as leniently as engine-protocol 13 has it.
//!
//! Text is borrowed from the frame until it has found room in an item.

mod count;
mod logs;
mod metrics;
mod traces;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::attribute::{AttributeValue, Attributes, Budget, Resource, Scope, find};

#[cfg(test)]
pub(crate) use count::MAX_ELEMENTS;
pub(crate) use logs::logs;
pub(crate) use metrics::metrics;
pub(crate) use traces::traces;

/// Any scalar, for any scalar field; whatever else is nothing.
#[derive(Debug, Default)]
enum Scalar<'a> {
    #[default]
    Nothing,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Double(f64),
    Text(Cow<'a, str>),
}

impl Scalar<'_> {
    fn unsigned(&self) -> u64 {
        match self {
            Self::Unsigned(number) => *number,
            Self::Signed(number) => u64::try_from(*number).unwrap_or(0),
            // A cast of a float saturates.
            Self::Double(number) => *number as u64,
            Self::Text(text) => {
                text.trim().parse().unwrap_or_else(|_| text.trim().parse::<f64>().unwrap_or(0.0) as u64)
            }
            Self::Bool(_) | Self::Nothing => 0,
        }
    }

    fn signed(&self) -> i64 {
        match self {
            Self::Signed(number) => *number,
            Self::Unsigned(number) => i64::try_from(*number).unwrap_or(i64::MAX),
            Self::Double(number) => *number as i64,
            Self::Text(text) => {
                text.trim().parse().unwrap_or_else(|_| text.trim().parse::<f64>().unwrap_or(0.0) as i64)
            }
            Self::Bool(value) => i64::from(*value),
            Self::Nothing => 0,
        }
    }

    fn double(&self) -> Option<f64> {
        match self {
            Self::Signed(number) => Some(*number as f64),
            Self::Unsigned(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) | Self::Nothing => None,
        }
    }

    /// A small number: a code, a kind, flags.
    fn small(&self) -> i32 {
        i32::try_from(self.signed()).unwrap_or(0)
    }

    fn truth(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Text(text) => text.eq_ignore_ascii_case("true"),
            _ => self.signed() != 0,
        }
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Nothing => Cow::Borrowed(""),
            Self::Bool(value) => Cow::Owned(value.to_string()),
            Self::Unsigned(number) => Cow::Owned(number.to_string()),
            Self::Signed(number) => Cow::Owned(number.to_string()),
            Self::Double(number) => Cow::Owned(number.to_string()),
            Self::Text(text) => Cow::Borrowed(text),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Signed(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Double(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Nothing)
    }
}

/// Reads a request that has no more in it than we have memory for.
fn request<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, serde_json::Error> {
    count::check(json)?;
    serde_json::from_str(json)
}

/// `null`, or not there, is empty.
type Items<T> = Option<Vec<T>>;

#[derive(Deserialize)]
struct KeyValue<'a> {
    #[serde(borrow, default)]
    key: Scalar<'a>,
    #[serde(borrow)]
    value: Option<AnyValue<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyValue<'a> {
    #[serde(borrow)]
    string_value: Option<Scalar<'a>>,
    #[serde(borrow)]
    int_value: Option<Scalar<'a>>,
    #[serde(borrow)]
    double_value: Option<Scalar<'a>>,
    #[serde(borrow)]
    bool_value: Option<Scalar<'a>>,
    #[serde(borrow)]
    bytes_value: Option<Scalar<'a>>,
    #[serde(borrow)]
    array_value: Option<ArrayValue<'a>>,
    #[serde(borrow)]
    kvlist_value: Option<KvList<'a>>,
}

#[derive(Deserialize)]
struct ArrayValue<'a> {
    #[serde(borrow)]
    values: Items<AnyValue<'a>>,
}

#[derive(Deserialize)]
struct KvList<'a> {
    #[serde(borrow)]
    values: Items<KeyValue<'a>>,
}

#[derive(Deserialize)]
struct WireResource<'a> {
    #[serde(borrow)]
    attributes: Items<KeyValue<'a>>,
}

#[derive(Deserialize)]
struct WireScope<'a> {
    #[serde(borrow, default)]
    name: Scalar<'a>,
    #[serde(borrow, default)]
    version: Scalar<'a>,
}

impl AnyValue<'_> {
    fn value(&self, budget: &mut Budget) -> AttributeValue {
        if let Some(text) = &self.string_value {
            AttributeValue::Text(budget.text(&text.text()))
        } else if let Some(number) = &self.int_value {
            AttributeValue::Int(number.signed())
        } else if let Some(number) = &self.double_value {
            AttributeValue::Double(number.double().unwrap_or(0.0))
        } else if let Some(truth) = &self.bool_value {
            AttributeValue::Bool(truth.truth())
        } else if let Some(bytes) = &self.bytes_value {
            AttributeValue::Bytes(budget.text(&bytes.text()))
        } else if let Some(list) = &self.array_value {
            let values = list.values.iter().flatten();
            AttributeValue::List(values.map_while(|value| budget.entry().then(|| value.value(budget))).collect())
        } else if let Some(list) = &self.kvlist_value {
            AttributeValue::Map(attributes(&list.values, budget))
        } else {
            AttributeValue::Empty
        }
    }
}

fn attributes(items: &Items<KeyValue<'_>>, budget: &mut Budget) -> Attributes {
    let mut attributes = Vec::new();
    for item in items.iter().flatten() {
        if !budget.entry() {
            break;
        }
        let value = item.value.as_ref().map_or(AttributeValue::Empty, |value| value.value(budget));
        attributes.push((budget.text(&item.key.text()), value));
    }
    attributes
}

fn resource(wire: &Option<WireResource<'_>>) -> Arc<Resource> {
    let attributes =
        wire.as_ref().map_or_else(Vec::new, |resource| attributes(&resource.attributes, &mut Budget::new()));
    let service_name =
        find(&attributes, "service.name").map_or_else(|| "unknown".to_owned(), |name| name.text().into_owned());
    Arc::new(Resource { service_name, attributes })
}

fn scope(wire: &Option<WireScope<'_>>) -> Arc<Scope> {
    let Some(scope) = wire else { return Arc::default() };
    let mut budget = Budget::new();
    Arc::new(Scope { name: budget.text(&scope.name.text()), version: budget.text(&scope.version.text()) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The one item of a request of each kind weighs this.
    fn weights(resource: &Value, scope: &Value) -> [usize; 3] {
        let trace = json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": [
            {"traceId": "3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f", "spanId": "9a8b7c6d5e4f3a2b"},
        ]}]}]});
        let metric = json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": scope, "metrics": [
            {"name": "g", "gauge": {"dataPoints": [{"asInt": 1}]}},
        ]}]}]});
        let log =
            json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [{}]}]}]});
        [
            traces(&trace.to_string()).expect("a span")[0].weight(),
            metrics(&metric.to_string(), 1).expect("a metric")[0].weight(),
            logs(&log.to_string(), 1).expect("a record")[0].weight(),
        ]
    }

    #[test]
    fn an_item_weighs_where_it_comes_from_too() {
        let long = "x".repeat(10_000);
        let plain = weights(&json!({}), &json!({}));
        let attribute = |key: &str| json!({"attributes": [{"key": key, "value": {"stringValue": long}}]});
        for (resource, scope, more) in [
            (attribute("a"), json!({}), 10_000),
            // Kept twice: as an attribute and by itself.
            (attribute("service.name"), json!({}), 20_000 - "unknown".len()),
            (json!({}), json!({"name": long, "version": long}), 20_000),
        ] {
            for (weight, plain) in weights(&resource, &scope).into_iter().zip(plain) {
                assert!(weight >= plain + more, "{weight} and {plain} without");
            }
        }
    }
}
