//! A worker's block in config.yaml as environment variables of its scripts.

use std::collections::BTreeMap;

use serde_json::Value;

/// A config block as environment variables: `db: {host: x}` becomes `DB_HOST=x`.
pub(crate) fn of_block(config: &Value) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::new();
    flatten("", config, &mut env)?;
    Ok(env)
}

fn flatten(prefix: &str, value: &Value, env: &mut BTreeMap<String, String>) -> Result<(), String> {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                let name = if prefix.is_empty() { key } else { format!("{prefix}_{key}") };
                flatten(&name, value, env)?;
            }
        }
        Value::Null => {}
        _ if prefix.is_empty() => return Err("`config` must be a mapping".into()),
        Value::String(text) => {
            let text = expand(text, |name| std::env::var(name).ok())?;
            env.insert(prefix.to_owned(), text);
        }
        other => {
            env.insert(prefix.to_owned(), other.to_string());
        }
    }
    Ok(())
}

/// `${NAME}` and `${NAME:default}`.
fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(end) = rest[start..].find('}') else { break };
        expanded.push_str(&rest[..start]);
        let inside = &rest[start + 2..start + end];
        let (name, default) = inside.split_once(':').map_or((inside, None), |(name, default)| (name, Some(default)));
        let value = variable(name).or_else(|| default.map(str::to_owned));
        expanded
            .push_str(&value.ok_or_else(|| format!("environment variable `{name}` is not set, and has no default"))?);
        rest = &rest[start + end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_block_becomes_variables() {
        let env = of_block(&json!({ "db": { "host": "x", "port": 5 }, "on": true, "a-b": "${NOT_SET_HERE:d}" }));
        let env = env.expect("flattened");
        let pairs: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["A_B=d", "DB_HOST=x", "DB_PORT=5", "ON=true"]);
        assert!(of_block(&json!({ "a": "${NOT_SET_HERE}" })).expect_err("no value").contains("NOT_SET_HERE"));
    }
}
