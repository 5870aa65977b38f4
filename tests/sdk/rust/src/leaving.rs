//! A worker that dies in the middle of a call, and an engine that is started anew under everybody.

use std::time::Duration;

use iii_sdk::TriggerRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::world::{Inbox, Outcome, bind, call, connect, failure, register, there, until};

/// The other worker's program.
pub async fn die_when_called() {
    let iii = connect("dying");
    register(&iii, "dying::die", |_| async { std::process::exit(1) });
    tokio::time::sleep(Duration::from_secs(600)).await;
}

pub async fn run() -> Outcome {
    let iii = connect("survivor");
    let mut child = Command::new(std::env::current_exe()?).arg("dying").spawn()?;
    there(&iii, &["dying::die"]).await;
    assert_eq!(failure(call(&iii, "dying::die", json!({})).await).0, "invocation_stopped");
    child.wait().await?;

    let other = connect("other");
    let heard = Inbox::registered(&other, "other::heard");
    register(&other, "other::double", |data| async move { Ok(json!(data["n"].as_i64().map(|n| n * 2))) });
    bind(&other, "subscribe", "other::heard", json!({ "topic": "after" }))?;
    there(&iii, &["other::heard", "other::double"]).await;
    call(&iii, "state::set", json!({ "scope": "leaving", "key": "kept", "value": 7 })).await?;
    println!("restart the engine");
    BufReader::new(tokio::io::stdin()).read_line(&mut String::new()).await?;

    let doubled = until("calls work again", async || {
        let (function_id, payload) = ("other::double".to_owned(), json!({ "n": 21 }));
        iii.trigger(TriggerRequest { function_id, payload, action: None, timeout_ms: Some(2000) }).await.ok()
    });
    assert_eq!(doubled.await, 42);
    assert_eq!(call(&iii, "state::get", json!({ "scope": "leaving", "key": "kept" })).await?, 7);

    let published: Value = until("the binding is there again", async || {
        call(&iii, "publish", json!({ "topic": "after", "data": { "still": "bound" } })).await.ok()?;
        heard.items().first().cloned()
    })
    .await;
    assert_eq!(published["still"], "bound");
    Ok(())
}
