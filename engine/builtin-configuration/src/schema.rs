//! Whether a value is what its schema asks for.

use engine_builtin::ErrorBody;
use jsonschema::PatternOptions;
use serde_json::Value;

/// Violations that are told, at most.
const MAX_TOLD: usize = 20;

/// Checks a value, as it is used: with its variables expanded.
///
/// # Errors
/// `SCHEMA_INVALID` with every violation, or with what is wrong with the schema itself.
pub fn check(schema: &Value, value: &Value) -> Result<(), ErrorBody> {
    let invalid = |message: String| ErrorBody::new("SCHEMA_INVALID", message);
    // No schema asks for nothing.
    if schema.is_null() {
        return Ok(());
    }
    // Patterns come from workers: no backtracking.
    let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
    let validator = options.build(schema).map_err(|error| invalid(format!("the schema is not valid: {error}")))?;
    let violations: Vec<String> = validator
        .iter_errors(value)
        .take(MAX_TOLD)
        .map(|error| {
            let at = error.instance_path().to_string();
            format!("{}: {error}", if at.is_empty() { "/" } else { &at })
        })
        .collect();
    if violations.is_empty() { Ok(()) } else { Err(invalid(violations.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_violation_is_told_with_its_place() {
        let schema = json!({
            "type": "object", "required": ["host"], "additionalProperties": false,
            "properties": { "host": { "type": "string" }, "port": { "type": "integer", "maximum": 65535 } },
        });
        check(&schema, &json!({ "host": "a", "port": 1 })).expect("valid");
        check(&Value::Null, &json!({ "anything": 1 })).expect("no schema");
        let error = check(&schema, &json!({ "port": 70000, "prt": 1 })).expect_err("three violations");
        for told in ["host", "/port", "prt"] {
            assert!(error.message.contains(told), "{told}: {}", error.message);
        }
        assert_eq!(check(&json!({ "type": 7 }), &Value::Null).expect_err("no schema").code, "SCHEMA_INVALID");
    }

    #[test]
    fn a_schema_does_not_reach_out() {
        let error = check(&json!({ "$ref": "http://127.0.0.1:1/x.json" }), &Value::Null).expect_err("refused");
        assert_eq!(error.code, "SCHEMA_INVALID");
    }
}
