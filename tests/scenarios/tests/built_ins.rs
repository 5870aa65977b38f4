//! What every engine brings along: that it is described, and what no other test calls.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine_client::{Call, Client, ClientConfig, FunctionSpec};
use serde_json::{Value, json};
use test_rig::{Rig, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Every built-in worker, on ports of their own.
const WORKERS: &str = "  - {name: iii-observability, config: {prometheus: {enabled: false}}}
  - {name: iii-state}
  - {name: iii-stream, config: {host: 127.0.0.1, port: 0}}
  - {name: iii-queue}
  - {name: iii-pubsub}
  - {name: iii-cron}
  - {name: iii-http, config: {host: 127.0.0.1, port: 0}}
  - {name: iii-http-functions}
  - {name: iii-bridge, config: {url: \"ws://127.0.0.1:1\"}}
";

fn engine() -> Rig {
    Rig::builder().workers(WORKERS).start_engine_only()
}

/// The ids that a listing has in `field` of its `list`.
fn ids(listing: &Value, list: &str, field: &str) -> BTreeSet<String> {
    let items = listing[list].as_array().into_iter().flatten();
    items.map(|item| item[field].as_str().expect("an id").to_owned()).collect()
}

/// Rows of README's table: id and test.
fn described(readme: &str) -> Vec<(String, String)> {
    let rows = readme.lines().filter(|line| line.starts_with("| `iii-") || line.starts_with("| `configuration`"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let test = cells[5].split_once("](").and_then(|(_, rest)| rest.split_once(')')).expect("a link").0;
        (cells[3].trim_matches('`').to_owned(), test.to_owned())
    })
    .collect()
}

#[test]
fn the_readme_lists_every_function_and_trigger_type_with_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let rig = engine();
    let all = json!({ "include_internal": true });
    let functions = rig.call("engine::functions::list", &all);
    let types = rig.call("engine::triggers::list", &all);
    let offered: BTreeSet<String> =
        ids(&functions, "functions", "function_id").into_iter().chain(ids(&types, "triggers", "id")).collect();
    assert!(offered.len() > 60, "{offered:?}");
    let rows = described(&fs::read_to_string(root.join("README.md")).expect("README.md"));
    let listed: BTreeSet<String> = rows.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(offered, listed, "README's table and the engine differ");
    for (id, test) in rows {
        let text = fs::read_to_string(root.join(&test)).unwrap_or_else(|error| panic!("{test}: {error}"));
        assert!(text.contains(&id), "{test} does not mention {id}");
    }
}

#[test]
fn discovery_tells_of_functions_types_and_bindings() {
    let rig = engine();
    let config = ClientConfig { url: rig.url(), name: "shop".into(), description: Some("A shop".into()) };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let binding = runtime.block_on(async {
        let client = Client::connect(config);
        let keep = Arc::clone(&seen);
        let spec = |id: &str| FunctionSpec {
            id: id.into(),
            description: "Prices a basket".into(),
            request_format: Some(json!({ "type": "object" })),
            metadata: Some(json!({ "public": true })),
            ..FunctionSpec::default()
        };
        client.register(spec("shop::quote"), |_: Call| async { Ok(None) });
        client.register(spec("shop::noticed"), move |call: Call| {
            let event: Value = serde_json::from_str(call.data.get()).expect("JSON");
            keep.lock().expect("a lock").push(event);
            async { Ok(None) }
        });
        let binding = client.register_trigger("state", "shop::quote", &json!({ "scope": "carts" }));
        for kind in ["engine::functions-available", "engine::workers-available"] {
            client.register_trigger(kind, "shop::noticed", &json!({}));
        }
        client.connected(PATIENCE).await.expect("connected");
        // Changes what there is, once the bindings are made.
        let registered = eventually(PATIENCE, || {
            let listed = rig.call("engine::registered-triggers::list", &json!({ "function_id": "shop::noticed" }));
            (listed["registered_triggers"].as_array()?.len() == 2).then_some(())
        });
        assert!(registered.is_some(), "{}", rig.log());
        client.register(spec("shop::late"), |_: Call| async { Ok(None) });
        let noticed = |kind: &str| {
            let events = seen.lock().expect("a lock");
            events.iter().any(|event: &Value| event["event"] == kind)
        };
        assert!(eventually(PATIENCE, || noticed("functions_changed").then_some(())).is_some());
        // Each `iii trigger` above is a worker that comes and goes.
        for kind in ["worker_connected", "worker_disconnected", "worker_metadata_updated"] {
            assert!(eventually(PATIENCE, || noticed(kind).then_some(())).is_some(), "{kind}");
        }
        let info = rig.call("engine::registered-triggers::info", &json!({ "id": binding }));
        assert_eq!(info["config"], json!({ "scope": "carts" }));
        assert_eq!(info["trigger"]["worker_name"], "iii-state");
        assert_eq!(info["function"]["request_schema"], json!({ "type": "object" }));
        let info = rig.call("engine::workers::info", &json!({ "name": "shop" }));
        assert_eq!(info["worker"]["description"], "A shop");
        assert_eq!(info["functions"].as_array().expect("functions").len(), 3);
        binding
    });
    let gone =
        eventually(PATIENCE, || rig.trigger("engine::registered-triggers::info", &json!({ "id": binding })).err());
    assert_eq!(gone.expect("it went with its worker")["code"], "NOT_FOUND");
    for list in ["engine::triggers::list", "engine::trigger-types::list"] {
        let types = rig.call(list, &json!({ "prefix": "stream" }));
        let wanted = ["stream", "stream:join", "stream:leave"].map(ToOwned::to_owned);
        assert_eq!(ids(&types, "triggers", "id"), BTreeSet::from(wanted));
    }
    let http = rig.call("engine::triggers::info", &json!({ "id": "http" }));
    assert_eq!((&http["worker_name"], &http["instance_count"]), (&json!("iii-http"), &json!(0)));
    assert!(http["configuration_schema"]["properties"]["api_path"].is_object(), "{http}");
    let error = rig.trigger("engine::triggers::info", &json!({ "id": "nope" })).expect_err("no such type");
    assert_eq!(error["code"], "NOT_FOUND");
}

#[test]
fn settings_are_stored_checked_and_followed_when_they_are_edited_by_hand() {
    let rig = engine();
    let schema = json!({ "type": "object", "properties": { "cap": { "type": "integer" } } });
    let entry = json!({
        "id": "billing", "name": "Billing", "description": "Limits", "schema": schema,
        "initial_value": { "cap": 10, "to": "${III_TEST_UNSET:nobody}" }, "metadata": { "team": "a" },
    });
    let _ = rig.call("configuration::register", &entry);
    let stored = rig.call("configuration::get", &json!({ "id": "billing" }));
    assert_eq!(stored["value"], json!({ "cap": 10, "to": "nobody" }));
    let raw = rig.call("configuration::get", &json!({ "id": "billing", "raw": true }));
    assert_eq!(raw["value"]["to"], "${III_TEST_UNSET:nobody}");
    let described = rig.call("configuration::schema", &json!({ "id": "billing" }));
    assert_eq!((&described["schema"], &described["metadata"]), (&schema, &json!({ "team": "a" })));
    assert!(described.get("value").is_none());
    let listed = rig.call("configuration::list", &json!({}));
    let listed = ids(&listed, "configurations", "id");
    assert!(listed.contains("billing") && listed.contains("iii-state"), "{listed:?}");
    for (function, payload, code) in [
        ("configuration::get", json!({ "id": "nope" }), "NOT_FOUND"),
        ("configuration::set", json!({ "id": "nope", "value": 1 }), "NOT_REGISTERED"),
        ("configuration::set", json!({ "id": "billing", "value": { "cap": "x" } }), "SCHEMA_INVALID"),
        ("configuration::register", json!({ "id": "../up" }), "INVALID_ID"),
    ] {
        assert_eq!(rig.trigger(function, &payload).expect_err(code)["code"], code);
    }
    // A second registration without a value keeps the one there is.
    let again = json!({ "id": "billing", "name": "Billing", "description": "Limits", "schema": schema });
    let _ = rig.call("configuration::register", &again);
    assert_eq!(rig.call("configuration::get", &json!({ "id": "billing" }))["value"]["cap"], 10);
    let file = rig.project().join("data/configuration/billing.yaml");
    let edited = fs::read_to_string(&file).expect("the entry's file").replace("cap: 10", "cap: 11");
    fs::write(&file, edited).expect("edited");
    let followed = eventually(PATIENCE, || {
        (rig.call("configuration::get", &json!({ "id": "billing" }))["value"]["cap"] == 11).then_some(())
    });
    assert!(followed.is_some(), "{}", rig.log());
    fs::remove_file(&file).expect("removed");
    let gone = eventually(PATIENCE, || rig.trigger("configuration::get", &json!({ "id": "billing" })).err());
    assert_eq!(gone.expect("it went with its file")["code"], "NOT_FOUND");
}

/// A setting that applies at once, set while the engine runs; it wins over config.yaml at the next start.
#[test]
fn stored_settings_of_a_built_in_worker_are_taken_and_outlive_the_engine() {
    let rig = engine();
    let set = |value: &str| json!({ "scope": "s", "key": "k", "value": value });
    let _ = rig.call("state::set", &set("long enough to be refused later"));
    let _ = rig.call("configuration::set", &json!({ "id": "iii-state", "value": { "max_value_bytes": 8 } }));
    let refused = eventually(PATIENCE, || rig.trigger("state::set", &set("long enough to be refused")).err());
    assert_eq!(refused.expect("the new limit")["code"], "VALUE_TOO_LARGE");
    let unknown = json!({ "id": "iii-state", "value": { "max_valu_bytes": 8 } });
    assert_eq!(rig.trigger("configuration::set", &unknown).expect_err("a typo")["code"], "SCHEMA_INVALID");
    let _ = rig.call("state::set", &set("short"));
}

#[test]
fn each_severity_has_its_function() {
    let rig = engine();
    let functions = [
        ("engine::log::trace", 1),
        ("engine::log::debug", 5),
        ("engine::log::info", 9),
        ("engine::log::warn", 13),
        ("engine::log::error", 17),
    ];
    for (function, severity) in functions {
        let payload = json!({ "message": function, "data": { "n": severity } });
        assert_eq!(rig.call(function, &payload), Value::Null);
        let logs = rig.call("engine::logs::list", &json!({ "severity_min": severity }));
        let kept = logs["logs"].as_array().expect("logs").iter().find(|log| log["body"] == function);
        let kept = kept.unwrap_or_else(|| panic!("{function}: {logs}"));
        assert_eq!(kept["severity_number"], severity);
    }
}

#[test]
fn streams_and_their_groups_are_listed() {
    let rig = engine();
    for (group, item) in [("room-1", "a"), ("room-2", "b"), ("room-2", "c")] {
        let payload = json!({ "stream_name": "chat", "group_id": group, "item_id": item, "data": item });
        let _ = rig.call("stream::set", &payload);
    }
    let groups = rig.call("stream::list_groups", &json!({ "stream_name": "chat" }));
    assert_eq!(groups, json!(["room-1", "room-2"]));
    let all = rig.call("stream::list_all", &json!({}));
    assert_eq!(all["count"], 1);
    assert_eq!(all["stream"][0]["id"], "chat");
}
