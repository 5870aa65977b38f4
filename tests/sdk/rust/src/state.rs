//! Values by scope and key, update operations, and a function that is called when they change.

use iii_sdk::UpdateOp;
use serde_json::{Value, json};

use crate::world::{Inbox, Outcome, bind, call, connect, failure, ids, register, there};

pub async fn run() -> Outcome {
    let iii = connect("state-user");
    let seen = Inbox::registered(&iii, "state-user::changed");
    register(&iii, "state-user::never", |_| async { Ok(json!(false)) });
    bind(&iii, "state", "state-user::changed", json!({ "scope": "carts" }))?;
    let never = json!({ "scope": "carts", "condition_function_id": "state-user::never" });
    bind(&iii, "state", "state-user::changed", never)?;
    there(&iii, &["state-user::changed", "state-user::never"]).await;

    let at = json!({ "scope": "carts", "key": "c-9" });
    let with = |name: &str, value: Value| {
        let mut payload = at.clone();
        payload[name] = value;
        payload
    };
    call(&iii, "state::delete", at.clone()).await?;
    assert_eq!(call(&iii, "state::get", at.clone()).await?, Value::Null);
    let set = call(&iii, "state::set", with("value", json!({ "n": 1 }))).await?;
    assert_eq!(set, json!({ "old_value": null, "new_value": { "n": 1 } }));
    assert_eq!(call(&iii, "state::get", at.clone()).await?, json!({ "n": 1 }));
    let ops = [
        UpdateOp::increment("n", 4),
        UpdateOp::append_at_path(["log", "entries"], "first"),
        UpdateOp::merge_at("tags", json!({ "a": true })),
        UpdateOp::increment("tags", 1),
    ];
    let changed = call(&iii, "state::update", with("ops", json!(ops))).await?;
    let value = json!({ "n": 5, "log": { "entries": ["first"] }, "tags": { "a": true } });
    assert_eq!(changed["new_value"], value);
    assert_eq!(changed["errors"].as_array().map(Vec::len), Some(1), "{changed}");
    assert_eq!(changed["errors"][0]["op_index"], 3);
    assert_eq!(call(&iii, "state::list", json!({ "scope": "carts" })).await?, json!([value]));
    let groups = call(&iii, "state::list_groups", json!({})).await?;
    assert!(groups["groups"].as_array().is_some_and(|groups| groups.contains(&json!("carts"))), "{groups}");
    assert_eq!(call(&iii, "state::delete", at).await?, value);

    let events = seen.wait(4).await;
    let kinds = ids(&json!(events), "event_type");
    assert_eq!(kinds, ["state:deleted", "state:created", "state:updated", "state:deleted"]);
    assert_eq!(events[2]["old_value"], json!({ "n": 1 }));
    assert_eq!(events[2]["key"], "c-9");
    assert_eq!(failure(call(&iii, "state::set", json!({ "scope": 7 })).await).0, "deserialization_error");
    Ok(())
}
