//! Messages that are delivered at least once: to subscribers of a topic, and from a named queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iii_sdk::{IIIError, TriggerAction};
use serde_json::json;

use crate::world::{Inbox, Outcome, bind, call, connect, failure, register, send, there, until};

fn to(queue: &str) -> Option<TriggerAction> {
    Some(TriggerAction::Enqueue { queue: queue.to_owned() })
}

pub async fn run() -> Outcome {
    let iii = connect("mailer");
    let first = Inbox::registered(&iii, "mailer::first");
    let second = Inbox::registered(&iii, "mailer::second");
    let jobs = Inbox::registered(&iii, "mailer::job");
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    register(&iii, "mailer::stubborn", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(IIIError::Handler("never works".to_owned())) }
    });
    for function in ["mailer::first", "mailer::second"] {
        bind(&iii, "durable:subscriber", function, json!({ "topic": "mail" }))?;
    }
    there(&iii, &["mailer::first", "mailer::second", "mailer::job", "mailer::stubborn"]).await;

    call(&iii, "iii::durable::publish", json!({ "topic": "mail", "data": { "to": "Ada" } })).await?;
    assert_eq!(first.wait(1).await[0]["to"], "Ada");
    assert_eq!(second.wait(1).await[0]["to"], "Ada");

    let receipt = send(&iii, "mailer::job", json!({ "n": 1 }), to("default")).await?;
    assert!(receipt["messageReceiptId"].is_string(), "{receipt}");
    assert_eq!(jobs.wait(1).await[0]["n"], 1);
    let (code, message) = failure(send(&iii, "mailer::job", json!({ "n": 1 }), to("no-such-queue")).await);
    assert_eq!(code, "enqueue_error");
    assert!(message.contains("no-such-queue"), "{message}");

    send(&iii, "mailer::stubborn", json!({ "n": 2 }), to("impatient")).await?;
    let dead = until("a dead letter", async || {
        let letters = call(&iii, "engine::queue::dlq_messages", json!({ "topic": "impatient" })).await.ok()?;
        letters.as_array()?.first().cloned()
    });
    let payload = &dead.await["payload"];
    assert_eq!(payload.get("data").unwrap_or(payload)["n"], 2, "{payload}");
    assert_eq!(failures.load(Ordering::SeqCst), 2);
    let redriven = call(&iii, "iii::queue::redrive", json!({ "queue": "impatient" })).await?;
    assert_eq!(redriven["redriven"], 1);
    until("it is tried again", async || (failures.load(Ordering::SeqCst) >= 3).then_some(())).await;
    Ok(())
}
