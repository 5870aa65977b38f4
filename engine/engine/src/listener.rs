//! Where workers connect, and by which rules: one block of `iii-worker-manager`.

use std::sync::Arc;

use engine_router::{Expose, Pattern, Wanted};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    pub host: String,
    pub port: u16,
    /// Called instead of what workers call.
    pub middleware: Option<String>,
    /// Without it, everything is allowed.
    pub rbac: Option<Arc<Rbac>>,
}

/// The rules of a listener.
#[derive(Debug, PartialEq)]
pub struct Rbac {
    pub auth_function_id: Option<String>,
    pub expose: Vec<Expose>,
    pub on_function: Option<String>,
    pub on_trigger: Option<String>,
    pub on_trigger_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawListener {
    host: String,
    port: u16,
    middleware_function_id: Option<String>,
    rbac: Option<RawRbac>,
}

impl Default for RawListener {
    fn default() -> Self {
        Self { host: "0.0.0.0".into(), port: 49134, middleware_function_id: None, rbac: None }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRbac {
    auth_function_id: Option<String>,
    expose_functions: Vec<Value>,
    on_function_registration_function_id: Option<String>,
    on_trigger_registration_function_id: Option<String>,
    on_trigger_type_registration_function_id: Option<String>,
}

impl Listener {
    /// The same without rules: for connections of our own VMs, which have theirs.
    #[must_use]
    pub fn open(&self) -> Self {
        Self { middleware: None, rbac: None, ..self.clone() }
    }

    /// The functions that it asks.
    pub(crate) fn functions(&self) -> impl Iterator<Item = String> {
        let rbac = self.rbac.as_ref();
        let asked =
            rbac.map(|rbac| [&rbac.auth_function_id, &rbac.on_function, &rbac.on_trigger, &rbac.on_trigger_type]);
        let asked = asked.into_iter().flatten().flatten().chain(&self.middleware);
        asked.cloned().collect::<Vec<_>>().into_iter()
    }

    /// From its block; `None` is a block without keys.
    ///
    /// # Errors
    /// What in it is wrong.
    pub fn parse(block: Option<&Value>) -> Result<Self, String> {
        let raw: Option<RawListener> =
            block.map(|block| serde_json::from_value(block.clone())).transpose().map_err(|error| error.to_string())?;
        let raw = raw.unwrap_or_default();
        let rbac = raw.rbac.map(|rbac| {
            Ok::<_, String>(Arc::new(Rbac {
                auth_function_id: rbac.auth_function_id,
                expose: rbac.expose_functions.iter().map(expose).collect::<Result<_, _>>()?,
                on_function: rbac.on_function_registration_function_id,
                on_trigger: rbac.on_trigger_registration_function_id,
                on_trigger_type: rbac.on_trigger_type_registration_function_id,
            }))
        });
        Ok(Self { host: raw.host, port: raw.port, middleware: raw.middleware_function_id, rbac: rbac.transpose()? })
    }
}

fn expose(entry: &Value) -> Result<Expose, String> {
    let bad = || format!("`expose_functions`: `{entry}` is neither `match(\"...\")` nor `metadata: {{..}}`");
    match entry {
        Value::String(text) => Pattern::parse(text).map(Expose::Id).ok_or_else(bad),
        Value::Object(object) if object.len() == 1 => {
            let wanted: &Map<String, Value> = object.get("metadata").and_then(Value::as_object).ok_or_else(bad)?;
            let wanted = wanted.iter().map(|(key, value)| {
                let pattern = value.as_str().and_then(Pattern::parse);
                (key.clone(), pattern.map_or_else(|| Wanted::Equal(value.clone()), Wanted::Matching))
            });
            Ok(Expose::Metadata(wanted.collect()))
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_block_becomes_rules() {
        let block = json!({
            "port": 1, "middleware_function_id": "mw", "rbac": {
                "auth_function_id": "auth",
                "expose_functions": ["match(\"api::*\")", { "metadata": { "public": true, "tier": "match('b*')" } }],
            },
        });
        let listener = Listener::parse(Some(&block)).expect("a listener");
        assert_eq!((listener.host.as_str(), listener.port), ("0.0.0.0", 1));
        let rbac = listener.rbac.expect("rules");
        let pattern = |text: &str| Pattern::parse(text).expect("a pattern");
        assert_eq!(
            rbac.expose,
            [
                Expose::Id(pattern("match('api::*')")),
                Expose::Metadata(vec![
                    ("public".into(), Wanted::Equal(json!(true))),
                    ("tier".into(), Wanted::Matching(pattern("match('b*')"))),
                ]),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (block, named) in [
            (json!({ "prt": 1 }), "prt"),
            (json!({ "rbac": { "auth": "x" } }), "auth"),
            (json!({ "rbac": { "expose_functions": ["api::*"] } }), "api::*"),
            (json!({ "rbac": { "expose_functions": [{ "meta": {} }] } }), "meta"),
        ] {
            let error = Listener::parse(Some(&block)).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
    }
}
