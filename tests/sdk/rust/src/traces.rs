//! Telemetry as the SDK sends it: a call's spans arrive, and a function is called when they do.

use iii_observability::OtelConfig;
use iii_sdk::{InitOptions, register_worker};
use serde_json::{Value, json};

use crate::world::{Inbox, Outcome, bind, call, register, setting, there, until};

pub async fn run() -> Outcome {
    let otel = OtelConfig { enabled: Some(true), ..OtelConfig::default() };
    let iii = register_worker(&setting("III_URL"), InitOptions { otel: Some(otel), ..InitOptions::default() });
    register(&iii, "traced::work", |data| async move { Ok(json!(data["n"].as_i64().map(|n| n + 1))) });
    let arrived = Inbox::registered(&iii, "traced::arrived");
    bind(&iii, "trace", "traced::arrived", json!({}))?;
    there(&iii, &["traced::work", "traced::arrived"]).await;
    assert_eq!(call(&iii, "traced::work", json!({ "n": 1 })).await?, 2);

    let span: Value = until("the call's span", async || {
        let listed = call(&iii, "engine::traces::list", json!({ "search_all_spans": true })).await.ok()?;
        let of_work = |span: &&Value| span["name"].as_str().is_some_and(|name| name.contains("traced::work"));
        listed["spans"].as_array()?.iter().find(of_work).cloned()
    })
    .await;
    let id = &span["trace_id"];
    arrived.find("its announcement", |told| told["trace_ids"].as_array().is_some_and(|ids| ids.contains(id))).await;
    let tree = call(&iii, "engine::traces::tree", json!({ "trace_id": id })).await?;
    assert_eq!(tree["roots"][0]["trace_id"], *id, "{tree}");
    Ok(())
}
