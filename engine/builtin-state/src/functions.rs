//! What `state::` functions are asked and what they answer, and what their failures are called.

use engine_builtin::{ErrorBody, Raw, RegisterFunction, RegisterTriggerType, name};
use engine_updates::Op;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::TRIGGER_TYPE;
use crate::adapter::AdapterError;

pub(crate) const SET: &str = "state::set";
pub(crate) const GET: &str = "state::get";
pub(crate) const DELETE: &str = "state::delete";
pub(crate) const UPDATE: &str = "state::update";
pub(crate) const LIST: &str = "state::list";
pub(crate) const LIST_GROUPS: &str = "state::list_groups";

/// Where a value is. Also what `state::get` and `state::delete` are asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    #[serde(deserialize_with = "name")]
    pub(crate) scope: String,
    #[serde(deserialize_with = "name")]
    pub(crate) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SetRequest {
    #[serde(deserialize_with = "name")]
    pub(crate) scope: String,
    #[serde(deserialize_with = "name")]
    pub(crate) key: String,
    #[serde(alias = "data")]
    pub(crate) value: Raw,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpdateRequest {
    #[serde(deserialize_with = "name")]
    pub(crate) scope: String,
    #[serde(deserialize_with = "name")]
    pub(crate) key: String,
    pub(crate) ops: Vec<Op>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListRequest {
    #[serde(deserialize_with = "name")]
    pub(crate) scope: String,
}

/// What a write answers.
#[derive(Serialize)]
pub(crate) struct Changed<'a> {
    pub(crate) old_value: Option<&'a RawValue>,
    pub(crate) new_value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) errors: Option<&'a RawValue>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Groups {
    pub(crate) groups: Vec<String>,
}

/// A failure of the adapter, as the function's caller sees it.
pub(crate) fn failure(code: &str, error: &AdapterError) -> ErrorBody {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    ErrorBody::new(code, message)
}

pub(crate) fn all() -> Vec<RegisterFunction> {
    let text = || json!({"type": "string"});
    let place = || json!({"scope": text(), "key": text()});
    let with = |name: &str, schema: Value| {
        let mut properties = place();
        properties[name] = schema;
        object(properties, &["scope", "key", name])
    };
    let ops = json!({"type": "array", "items": {"type": "object", "required": ["type"], "properties": {
        "type": {"enum": ["set", "increment", "decrement", "append", "merge", "remove"]},
        "path": {"type": ["string", "array", "null"], "items": text()},
        "value": {},
        "by": {"type": "integer"}
    }}});
    let changed = |also: Option<&str>| {
        let mut properties = json!({"old_value": {}, "new_value": {}});
        if let Some(also) = also {
            properties[also] = json!({"type": "array", "items": {"type": "object"}});
        }
        object(properties, &["old_value", "new_value"])
    };
    let groups = object(json!({"groups": {"type": "array", "items": text()}}), &["groups"]);
    let at_place = || object(place(), &["scope", "key"]);
    vec![
        function(SET, "Stores a value and returns the one before.", with("value", json!({})), changed(None)),
        function(GET, "Returns a value, or nothing.", at_place(), json!({})),
        function(DELETE, "Removes a value and returns it, or nothing.", at_place(), json!({})),
        function(
            UPDATE,
            "Changes a value by a list of operations, at once.",
            with("ops", ops),
            changed(Some("errors")),
        ),
        function(
            LIST,
            "Returns all values of a scope, the oldest first.",
            object(json!({"scope": text()}), &["scope"]),
            json!({"type": "array"}),
        ),
        function(LIST_GROUPS, "Returns all scopes that have values.", json!({}), groups),
    ]
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn function(id: &str, description: &str, request: Value, response: Value) -> RegisterFunction {
    RegisterFunction {
        id: id.into(),
        description: Some(description.into()),
        request_format: to_raw_value(&request).ok(),
        response_format: to_raw_value(&response).ok(),
        metadata: None,
        invocation: None,
    }
}

pub(crate) fn trigger_type() -> RegisterTriggerType {
    let filter = |what: &str| json!({"type": ["string", "null"], "description": what});
    let config = json!({"type": ["object", "null"], "properties": {
        "scope": filter("Fires for values of this scope; of any by default."),
        "key": filter("Fires for values of this key; of any by default."),
        "condition_function_id": filter("Asked first with the same payload; only `false` is a no.")
    }});
    let payload = json!({"type": "object", "properties": {
        "type": {"const": "state"},
        "event_type": {"enum": ["state:created", "state:updated", "state:deleted"]},
        "scope": {"type": "string"},
        "key": {"type": "string"},
        "old_value": {},
        "new_value": {}
    }});
    RegisterTriggerType {
        id: TRIGGER_TYPE.into(),
        description: Some("Fires when a value is stored, changed or deleted.".into()),
        trigger_request_format: to_raw_value(&config).ok(),
        call_request_format: to_raw_value(&payload).ok(),
    }
}
