//! What the functions answer.

use std::sync::Arc;

use engine_builtin::{Builtin, Reply};
use serde_json::json;

use crate::fake_engine::{ask, done, in_memory, quiet_engine, reply, state, state_in_memory};

/// The same story on every adapter.
pub(crate) async fn answers_exactly(state: &Arc<dyn Builtin>) {
    let place = json!({"scope": "carts", "key": "c-9"});
    let answer = async |function: &str, data| done(state, function, data).await;
    assert_eq!(answer("get", place.clone()).await, "");
    assert_eq!(answer("delete", place.clone()).await, "");
    assert_eq!(answer("list", json!({"scope": "carts"})).await, "[]");
    assert_eq!(answer("list_groups", json!({})).await, r#"{"groups":[]}"#);
    let set = |value| json!({"scope": "carts", "key": "c-9", "value": value});
    assert_eq!(answer("set", set(json!({"n": 1}))).await, r#"{"old_value":null,"new_value":{"n":1}}"#);
    assert_eq!(answer("set", set(json!({"n": 2}))).await, r#"{"old_value":{"n":1},"new_value":{"n":2}}"#);
    assert_eq!(answer("get", place.clone()).await, r#"{"n":2}"#);
    let aliased = json!({"scope": "orders", "key": "o", "data": "text", "unknown": 1});
    assert_eq!(answer("set", aliased).await, r#"{"old_value":null,"new_value":"text"}"#);
    let update = |ops| json!({"scope": "carts", "key": "c-9", "ops": ops});
    let ops = json!([{"type": "increment", "path": "n", "by": 3}, {"type": "set", "path": "a", "value": [1]}]);
    let updated = r#"{"old_value":{"n":2},"new_value":{"n":5,"a":[1]}}"#;
    assert_eq!(answer("update", update(ops)).await, updated);
    let ops = json!([{"type": "increment", "path": "a", "by": 1}]);
    let message = "could not increment: what is there is no number, or the result is too large for one";
    let skipped = json!([{"op_index": 0, "code": "increment.not_number", "message": message}]);
    let unchanged = format!(r#"{{"old_value":{{"n":5,"a":[1]}},"new_value":{{"n":5,"a":[1]}},"errors":{skipped}}}"#);
    assert_eq!(answer("update", update(ops)).await, unchanged);
    let new = json!({"scope": "carts", "key": "new", "ops": [{"type": "append", "path": "log", "value": 1}]});
    assert_eq!(answer("update", new).await, r#"{"old_value":null,"new_value":{"log":[1]}}"#);
    assert_eq!(answer("list", json!({"scope": "carts"})).await, r#"[{"n":5,"a":[1]},{"log":[1]}]"#);
    assert_eq!(answer("list_groups", json!({})).await, r#"{"groups":["carts","orders"]}"#);
    assert_eq!(answer("delete", place.clone()).await, r#"{"n":5,"a":[1]}"#);
    assert_eq!(answer("get", place).await, "");
    answer("delete", json!({"scope": "carts", "key": "new"})).await;
    assert_eq!(answer("list_groups", json!({})).await, r#"{"groups":["orders"]}"#);
    answer("delete", json!({"scope": "orders", "key": "o"})).await;
}

#[tokio::test]
async fn every_function_answers_as_the_contract_says() {
    answers_exactly(&state_in_memory().await).await;
}

#[tokio::test]
async fn a_value_is_read_where_the_call_arrives() {
    let state = state_in_memory().await;
    assert!(matches!(reply(&state, "get", r#"{"scope": "s", "key": "k"}"#), Reply::Now(Ok(None))));
}

#[tokio::test]
async fn values_are_listed_in_the_order_in_which_their_keys_came() {
    let state = state_in_memory().await;
    for key in ["z", "b", "a"] {
        done(&state, "set", json!({"scope": "s", "key": key, "value": key})).await;
    }
    done(&state, "set", json!({"scope": "s2", "key": "elsewhere", "value": 0})).await;
    done(&state, "set", json!({"scope": "s", "key": "b", "value": "again"})).await;
    assert_eq!(done(&state, "list", json!({"scope": "s"})).await, r#"["z","again","a"]"#);
    done(&state, "delete", json!({"scope": "s", "key": "z"})).await;
    done(&state, "set", json!({"scope": "s", "key": "z", "value": "last"})).await;
    assert_eq!(done(&state, "list", json!({"scope": "s"})).await, r#"["again","a","last"]"#);
}

#[tokio::test]
async fn scopes_are_told_apart_and_sorted_whatever_their_bytes() {
    let state = state_in_memory().await;
    for scope in ["b", "a\0", "a", "", "ä", "a\0b", "b:c"] {
        for key in ["", "\0", "k"] {
            done(&state, "set", json!({"scope": scope, "key": key, "value": scope})).await;
        }
        assert_eq!(done(&state, "list", json!({ "scope": scope })).await, json!([scope, scope, scope]).to_string());
    }
    let sorted = json!({"groups": ["", "a", "a\0", "a\0b", "b", "b:c", "ä"]});
    assert_eq!(done(&state, "list_groups", json!(null)).await, sorted.to_string());
}

#[tokio::test]
async fn values_stay_the_text_they_were() {
    let state = state_in_memory().await;
    for text in ["null", "1e400", "12345678901234567890123", r#"{"z": 1,  "a":2, "z":3}"#, "\"\\u00e4\"", "1.0"] {
        let set = format!(r#"{{"scope":"s","key":"k","value":{text}}}"#);
        ask(&state, "set", &set).await.expect("stored");
        assert_eq!(ask(&state, "get", r#"{"scope":"s","key":"k"}"#).await.as_deref(), Ok(text));
    }
}

#[tokio::test]
async fn a_stored_null_is_there() {
    let state = state_in_memory().await;
    done(&state, "set", json!({"scope": "s", "key": "k", "value": null})).await;
    assert_eq!(done(&state, "get", json!({"scope": "s", "key": "k"})).await, "null");
    assert_eq!(done(&state, "list", json!({"scope": "s"})).await, "[null]");
    let ops = json!([{"type": "set", "path": "a", "value": 1}]);
    let updated = done(&state, "update", json!({"scope": "s", "key": "k", "ops": ops})).await;
    assert!(updated.contains("set.target_not_object"), "{updated}");
}

#[tokio::test]
async fn a_value_that_cannot_be_parsed_is_not_updated_and_can_be_replaced() {
    let state = state_in_memory().await;
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    for text in ["1e400", &deep] {
        ask(&state, "set", &format!(r#"{{"scope":"s","key":"k","value":{text}}}"#)).await.expect("stored");
        let update = r#"{"scope":"s","key":"k","ops":[{"type":"set","path":"","value":1}]}"#;
        assert_eq!(ask(&state, "update", update).await, Err("UPDATE_ERROR".into()));
        assert_eq!(ask(&state, "get", r#"{"scope":"s","key":"k"}"#).await.as_deref(), Ok(text));
    }
    done(&state, "set", json!({"scope": "s", "key": "k", "value": 1})).await;
}

#[tokio::test]
async fn updates_of_one_key_at_once_lose_nothing() {
    let state = state_in_memory().await;
    let count = |_| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let ops = json!([{"type": "increment", "path": "n", "by": 1}]);
            done(&state, "update", json!({"scope": "s", "key": "k", "ops": ops})).await
        })
    };
    for counted in (0..200).map(count).collect::<Vec<_>>() {
        counted.await.expect("no panic");
    }
    assert_eq!(done(&state, "get", json!({"scope": "s", "key": "k"})).await, r#"{"n":200}"#);
}

#[tokio::test]
async fn a_payload_that_does_not_fit_is_refused() {
    let state = state_in_memory().await;
    for (function, data) in [
        ("set", r#"{"scope":"s","key":"k"}"#),
        ("set", r#"{"scope":"s","value":1}"#),
        ("set", r#"{"scope":1,"key":"k","value":1}"#),
        ("get", r#"{"scope":"s"}"#),
        ("get", "null"),
        ("delete", r#"{"key":"k"}"#),
        ("update", r#"{"scope":"s","key":"k"}"#),
        ("update", r#"{"scope":"s","key":"k","ops":[{"type":"multiply","path":"a"}]}"#),
        ("list", "{}"),
    ] {
        assert_eq!(ask(&state, function, data).await, Err("deserialization_error".into()), "{function} {data}");
    }
}

#[tokio::test]
async fn a_value_has_a_size_that_settings_change_at_once() {
    let state = state_in_memory().await;
    let set = |text: &str| json!({"scope": "s", "key": "k", "value": text}).to_string();
    ask(&state, "set", &set("123456")).await.expect("no limit");
    let limited = json!({"max_value_bytes": 7, "adapter": in_memory()["adapter"]});
    state.apply(limited).await.expect("applied");
    ask(&state, "set", &set("12345")).await.expect("seven bytes");
    assert_eq!(ask(&state, "set", &set("123456")).await, Err("VALUE_TOO_LARGE".into()));
    let append = json!({"scope": "s", "key": "k", "ops": [{"type": "append", "value": "6"}]}).to_string();
    assert_eq!(ask(&state, "update", &append).await, Err("UPDATE_ERROR".into()));
    assert_eq!(done(&state, "get", json!({"scope": "s", "key": "k"})).await, "\"12345\"", "nothing was written");
    assert!(state.apply(json!({"max_value_bytes": "many"})).await.is_err());
    assert_eq!(ask(&state, "set", &set("123456")).await, Err("VALUE_TOO_LARGE".into()), "the settings before");
    state.apply(json!(null)).await.expect("applied");
    ask(&state, "set", &set("123456")).await.expect("no limit again");
}

#[tokio::test]
async fn a_value_cannot_grow_without_bound() {
    let state = state_in_memory().await;
    let part = "x".repeat(5 * 1024 * 1024);
    let append = json!({"scope": "s", "key": "k", "ops": [{"type": "append", "value": part}]}).to_string();
    for _ in 0..2 {
        ask(&state, "update", &append).await.expect("less than 15 MiB");
    }
    assert_eq!(ask(&state, "update", &append).await, Err("UPDATE_ERROR".into()));
    let set = json!({"scope": "s", "key": "k", "value": part.repeat(3)}).to_string();
    assert_eq!(ask(&state, "set", &set).await, Err("VALUE_TOO_LARGE".into()));
}

#[tokio::test]
async fn names_have_a_longest_length() {
    let state = state_in_memory().await;
    let (fits, long) = ("n".repeat(1024), "n".repeat(1025));
    done(&state, "set", json!({"scope": fits, "key": fits, "value": 1})).await;
    for (scope, key) in [(&fits, &long), (&long, &fits)] {
        for function in ["set", "get", "delete", "update"] {
            let request = json!({"scope": scope, "key": key, "value": 1, "ops": []}).to_string();
            assert_eq!(ask(&state, function, &request).await, Err("deserialization_error".into()), "{function}");
        }
    }
    assert_eq!(ask(&state, "list", &json!({ "scope": long }).to_string()).await, Err("deserialization_error".into()));
}

#[tokio::test]
async fn an_adapter_that_is_asked_for_later_is_not_used_yet() {
    let state = state_in_memory().await;
    done(&state, "set", json!({"scope": "s", "key": "k", "value": 1})).await;
    state.apply(json!({"adapter": {"name": "redis"}})).await.expect("applied");
    assert_eq!(done(&state, "get", json!({"scope": "s", "key": "k"})).await, "1");
}

#[tokio::test]
async fn settings_and_files_that_cannot_be_used_are_named() {
    let error = builtin_state::create(quiet_engine().0, json!({"adaptor": {}})).await.err().expect("no worker");
    assert!(error.to_string().contains("adaptor"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let settings = json!({"adapter": {"name": "kv", "config": {"file_path": file}}});
    let error = builtin_state::create(quiet_engine().0, settings).await.err().expect("no worker");
    assert!(error.to_string().contains("file/store.redb"), "{error}");
}

#[tokio::test]
async fn what_it_offers_is_described() {
    let state = state(quiet_engine().0, in_memory()).await;
    let offered: Vec<String> = state.functions().into_iter().map(|function| function.id).collect();
    let expected = ["set", "get", "delete", "update", "list", "list_groups"].map(|name| format!("state::{name}"));
    assert_eq!(offered, expected);
    assert_eq!(state.trigger_types()[0].id, "state");
    assert_eq!(state.name(), builtin_state::NAME);
    assert_eq!(builtin_state::schema()["additionalProperties"], json!(false));
}
