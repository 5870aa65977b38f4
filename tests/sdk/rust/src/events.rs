//! Events without storage: publish and subscribe, cron, logs, and settings that change.

use serde_json::json;

use crate::world::{Inbox, Outcome, bind, call, connect, there};

const WARNING: &str = "disk is nearly full";

pub async fn run() -> Outcome {
    let iii = connect("listener");
    let heard = Inbox::registered(&iii, "listener::heard");
    let ticked = Inbox::registered(&iii, "listener::ticked");
    let logged = Inbox::registered(&iii, "listener::logged");
    let configured = Inbox::registered(&iii, "listener::configured");
    bind(&iii, "subscribe", "listener::heard", json!({ "topic": "news" }))?;
    bind(&iii, "cron", "listener::ticked", json!({ "expression": "* * * * * *" }))?;
    bind(&iii, "log", "listener::logged", json!({ "level": "warn" }))?;
    bind(&iii, "configuration", "listener::configured", json!({ "configuration_id": "billing" }))?;
    there(&iii, &["listener::heard", "listener::ticked", "listener::logged", "listener::configured"]).await;

    call(&iii, "publish", json!({ "topic": "news", "data": { "headline": "it works" } })).await?;
    assert_eq!(heard.wait(1).await[0]["headline"], "it works");

    let ticks = ticked.wait(2).await;
    assert_eq!(ticks[0]["trigger"], "cron");
    assert!(ticks[0]["job_id"].is_string());
    assert!(ticks[0]["scheduled_time"].as_str() <= ticks[0]["actual_time"].as_str(), "{ticks:?}");

    call(&iii, "engine::log::info", json!({ "message": "not this one" })).await?;
    call(&iii, "engine::log::warn", json!({ "message": WARNING, "data": { "free": 3 } })).await?;
    let entry = logged.find("the warning", |entry| entry["body"] == WARNING).await;
    assert_eq!(entry["severity_text"], "WARN");
    assert!(logged.items().iter().all(|entry| entry["body"] != "not this one"));
    let stored = call(&iii, "engine::logs::list", json!({ "severity_min": 13 })).await?;
    assert!(stored["logs"].as_array().is_some_and(|logs| logs.iter().any(|log| log["body"] == WARNING)), "{stored}");

    let billing = json!({
        "id": "billing", "name": "Billing", "description": "Limits", "schema": { "type": "object" },
        "initial_value": { "cap": 10 }
    });
    call(&iii, "configuration::register", billing).await?;
    call(&iii, "configuration::set", json!({ "id": "billing", "value": { "cap": 25 } })).await?;
    let change = configured.find("the change", |event| event["new_value"] == json!({ "cap": 25 })).await;
    assert_eq!(change["event_type"], "configuration:updated");
    assert_eq!(change["old_value"], json!({ "cap": 10 }));
    Ok(())
}
