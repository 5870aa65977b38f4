//! Who is there: events about workers and functions that come and go.

use serde_json::{Value, json};

use crate::world::{Inbox, Outcome, bind, call, connect, ids, register, there, until};

pub async fn run() -> Outcome {
    let iii = connect("watcher");
    let workers = Inbox::registered(&iii, "watcher::workers");
    let functions = Inbox::registered(&iii, "watcher::functions");
    bind(&iii, "engine::workers-available", "watcher::workers", json!({}))?;
    bind(&iii, "engine::functions-available", "watcher::functions", json!({}))?;
    there(&iii, &["watcher::workers", "watcher::functions"]).await;

    let guest = connect("guest");
    register(&guest, "guest::wave", |_| async { Ok(json!("hello")) });
    there(&iii, &["guest::wave"]).await;
    // A worker says its name after its functions.
    let named = async || call(&iii, "engine::workers::info", json!({ "name": "guest" })).await.ok();
    let info = until("the guest has said its name", named).await;
    let id = &info["worker"]["id"];
    let told = |event: &'static str| move |item: &Value| item["event"] == event && item["worker_id"] == *id;
    let listed = || {
        let items = functions.items();
        items.last().is_some_and(|told| ids(&told["functions"], "function_id").iter().any(|id| id == "guest::wave"))
    };
    workers.find("the guest is announced", told("worker_connected")).await;
    workers.find("what it says of itself is announced", told("worker_metadata_updated")).await;
    until("its function is announced", async || listed().then_some(())).await;

    guest.shutdown_async().await;
    workers.find("its end is announced", told("worker_disconnected")).await;
    until("its function is gone", async || (!listed()).then_some(())).await;
    Ok(())
}
