//! The table of settings and their tests is compared with what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::KINDS;
use crate::listener::Listener;

/// The settings in a schema, by the names that the table has for them.
fn settings(schema: &Value, name: &str, found: &mut BTreeSet<String>) {
    let join = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    if let Some(choices) = schema["oneOf"].as_array() {
        found.insert(name.to_owned());
        for choice in choices {
            let properties = choice["properties"].as_object().expect("properties");
            let is_tag = |property: &Value| property.get("const").is_some();
            let tag = properties.values().find_map(|property| property["const"].as_str()).expect("a name");
            for (key, property) in properties.iter().filter(|(_, property)| !is_tag(property)) {
                if key == "config" {
                    nested(property, &join(tag), found);
                } else {
                    settings(property, &join(&format!("{tag}.{key}")), found);
                }
            }
        }
    } else if schema["items"]["properties"].is_object() {
        settings(&schema["items"], &format!("{name}[]"), found);
    } else if schema["additionalProperties"].is_object() {
        settings(&schema["additionalProperties"], &join("*"), found);
    } else if schema["properties"].is_object() {
        nested(schema, name, found);
    } else {
        found.insert(name.to_owned());
    }
}

fn nested(schema: &Value, name: &str, found: &mut BTreeSet<String>) {
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        settings(property, &name, found);
    }
}

/// A listener has no schema; a key that it does not know has it list those it knows.
fn listener_settings() -> BTreeSet<String> {
    let known = |block: &Value| {
        let error = Listener::parse(Some(block)).expect_err("an unknown key");
        let listed = error.split_once("expected one of").expect("a list").1;
        listed.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<BTreeSet<String>>()
    };
    let mut found = known(&json!({ "?": 1 }));
    assert!(found.remove("rbac"), "{found:?}");
    found.extend(known(&json!({ "rbac": { "?": 1 } })).iter().map(|key| format!("rbac.{key}")));
    found
}

#[test]
fn every_setting_has_its_test_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut wanted = BTreeSet::new();
    let configuration = (builtin_configuration::NAME, builtin_configuration::schema());
    for (worker, schema) in KINDS.iter().map(|kind| (kind.name, (kind.schema)())).chain([configuration]) {
        let mut found = BTreeSet::new();
        settings(&schema, "", &mut found);
        wanted.extend(found.into_iter().map(|setting| (worker.to_owned(), setting)));
    }
    wanted.extend(listener_settings().into_iter().map(|setting| ("iii-worker-manager".to_owned(), setting)));

    let table = fs::read_to_string(root.join("docs/settings-tests.md")).expect("the table");
    let mut listed = BTreeSet::new();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, worker, setting, when, test, _] = cells[..] else { panic!("{row}") };
        assert!(["live", "move", "file", "restart", "none"].contains(&when), "{row}");
        let (name, path) = test.trim_matches(['[', ')']).split_once("](../").expect("a link");
        let text = files
            .entry(path.to_owned())
            .or_insert_with(|| fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}")));
        assert!(text.contains(&format!("fn {name}()")), "{path} has no test `{name}`");
        // Its last part: a test that never says a setting's name cannot be about it.
        let last = setting.trim_matches('`').rsplit('.').next().unwrap_or_default().trim_end_matches("[]");
        assert!(text.contains(last), "{path} does not mention `{last}`");
        let new = listed.insert((worker.trim_matches('`').to_owned(), setting.trim_matches('`').to_owned()));
        assert!(new, "twice: {row}");
    }
    let missing: Vec<_> = wanted.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&wanted).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not in the table: {missing:?}; not a setting: {unknown:?}");
}
