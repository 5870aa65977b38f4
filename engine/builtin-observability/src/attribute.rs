//! Attributes: named values of spans, logs and metrics, and what they may weigh.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// What one span, log record or metric may hold in text; the rest is cut off.
pub(crate) const MAX_ITEM_BYTES: usize = 256 * 1024;

/// What an entry costs besides its text.
const ENTRY_BYTES: usize = 64;

/// A value, typed as OTLP has it.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    Empty,
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// In base64, as it arrived.
    Bytes(String),
    List(Vec<AttributeValue>),
    Map(Attributes),
}

pub type Attributes = Vec<(String, AttributeValue)>;

/// Where telemetry comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resource {
    pub service_name: String,
    /// All of them, `service.name` too.
    pub attributes: Attributes,
}

/// What made it; empty where unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    pub name: String,
    pub version: String,
}

impl AttributeValue {
    /// As queries and labels show it.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Empty => Cow::Borrowed(""),
            Self::Text(text) | Self::Bytes(text) => Cow::Borrowed(text),
            Self::Bool(value) => Cow::Borrowed(if *value { "true" } else { "false" }),
            Self::Int(value) => Cow::Owned(value.to_string()),
            Self::Double(value) => Cow::Owned(value.to_string()),
            Self::List(_) | Self::Map(_) => Cow::Owned(self.json().to_string()),
        }
    }

    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Empty => Value::Null,
            Self::Text(text) | Self::Bytes(text) => Value::String(text.clone()),
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::from(*value),
            Self::Double(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
            Self::List(values) => Value::Array(values.iter().map(Self::json).collect()),
            Self::Map(entries) => Value::Object(object(entries)),
        }
    }

    /// Of a payload's value.
    pub(crate) fn of_json(value: &Value, budget: &mut Budget) -> Self {
        match value {
            Value::Null => Self::Empty,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(number) => Self::Int(number),
                None => Self::Double(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Self::Text(budget.text(text)),
            Value::Array(values) => Self::List(
                values.iter().map_while(|value| budget.entry().then(|| Self::of_json(value, budget))).collect(),
            ),
            Value::Object(entries) => Self::Map(of_object(entries, budget)),
        }
    }
}

pub(crate) fn of_object(entries: &Map<String, Value>, budget: &mut Budget) -> Attributes {
    entries
        .iter()
        .map_while(|(key, value)| budget.entry().then(|| (budget.text(key), AttributeValue::of_json(value, budget))))
        .collect()
}

/// Attributes as a JSON object; of equal names the last wins.
pub(crate) fn object(attributes: &Attributes) -> Map<String, Value> {
    attributes.iter().map(|(key, value)| (key.clone(), value.json())).collect()
}

/// About what attributes take in memory.
pub(crate) fn weight(attributes: &Attributes) -> usize {
    use AttributeValue as A;
    fn of(value: &A) -> usize {
        match value {
            A::Text(text) | A::Bytes(text) => text.len(),
            A::List(values) => values.iter().map(|value| size_of::<A>() + of(value)).sum(),
            A::Map(entries) => weight(entries),
            A::Empty | A::Bool(_) | A::Int(_) | A::Double(_) => 0,
        }
    }
    attributes.iter().map(|(key, value)| ENTRY_BYTES + key.len() + of(value)).sum()
}

/// Where something comes from, and what made it. Counted in full with every item: how many share them, and for how
/// long, nobody knows, and the last of them keeps the whole.
pub(crate) fn origin_weight(resource: &Resource, scope: &Scope) -> usize {
    size_of::<Resource>()
        + resource.service_name.len()
        + weight(&resource.attributes)
        + size_of::<Scope>()
        + scope.name.len()
        + scope.version.len()
}

pub(crate) fn find<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a AttributeValue> {
    attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// What is left for one item's text.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { left: MAX_ITEM_BYTES }
    }

    /// As much of `text` as there is room for.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let end = text.floor_char_boundary(self.left);
        self.left -= end;
        text[..end].to_owned()
    }

    /// Whether there is room for another attribute, event, link or point.
    pub(crate) fn entry(&mut self) -> bool {
        match self.left.checked_sub(ENTRY_BYTES) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_keep_their_type_and_have_a_text() {
        let value = json!({"a": [1, -2.5, true, null], "b": "x"});
        let attribute = AttributeValue::of_json(&value, &mut Budget::new());
        assert_eq!(attribute.json(), value);
        assert_eq!(attribute.text(), r#"{"a":[1,-2.5,true,null],"b":"x"}"#);
        assert_eq!(AttributeValue::Int(7).text(), "7");
    }

    #[test]
    fn an_item_is_cut_off_where_its_budget_ends() {
        let mut budget = Budget::new();
        assert_eq!(budget.text(&"é".repeat(MAX_ITEM_BYTES)).len(), MAX_ITEM_BYTES);
        assert_eq!(budget.text("more"), "");
        assert!(!budget.entry());
        let many = Value::Array(vec![Value::Null; MAX_ITEM_BYTES]);
        let AttributeValue::List(kept) = AttributeValue::of_json(&many, &mut Budget::new()) else { panic!("a list") };
        assert_eq!(kept.len(), MAX_ITEM_BYTES / ENTRY_BYTES);
    }
}
