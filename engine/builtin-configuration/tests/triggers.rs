//! Who is told of changes, and in which order.

#[path = "../../builtin-pubsub/tests/fake/mod.rs"]
mod fake;

use std::sync::Arc;

use engine_builtin::Builtin;
use fake::{FakeEngine, bind, call, next, unbind};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};

async fn worker(fake: &Arc<FakeEngine>) -> (Arc<dyn Builtin>, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let settings = json!({ "adapter": { "name": "fs", "config": { "directory": folder.path() } } });
    (builtin_configuration::create(fake.engine(), settings).await.expect("a worker"), folder)
}

async fn register(worker: &Arc<dyn Builtin>, id: &str) {
    let entry = json!({ "id": id, "name": id, "description": "", "schema": {}, "initial_value": 0 });
    call(worker, "configuration::register", entry).await.expect("registered");
}

async fn set(worker: &Arc<dyn Builtin>, id: &str, value: Value) {
    call(worker, "configuration::set", json!({ "id": id, "value": value })).await.expect("set");
}

/// A function that notes each change and answers when it is let.
fn gated(fake: &FakeEngine, id: &'static str) -> (mpsc::UnboundedReceiver<(String, Value)>, Arc<Semaphore>) {
    let (told, heard) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    fake.offer(id, move |event| {
        let _ = told.send((event["id"].as_str().expect("an id").to_owned(), event["new_value"].clone()));
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("open").forget();
            Ok(Value::Null)
        }
    });
    (heard, gate)
}

#[tokio::test]
async fn changes_of_an_entry_take_turns_and_neither_other_entries_nor_other_functions_wait() {
    let fake = FakeEngine::new();
    let (worker, _folder) = worker(&fake).await;
    for id in ["billing", "mail"] {
        register(&worker, id).await;
    }
    let (mut slow, gate) = gated(&fake, "slow");
    let mut quick = fake.note("quick");
    bind(&worker, "configuration", "slow", json!({}));
    bind(&worker, "configuration", "quick", json!({ "configuration_id": "billing" }));
    for number in 1..=3 {
        set(&worker, "billing", json!(number)).await;
        assert_eq!(next(&mut quick).await.0["new_value"], number);
    }
    set(&worker, "mail", json!("m")).await;
    assert_eq!(next(&mut slow).await, ("billing".into(), json!(1)));
    assert_eq!(next(&mut slow).await, ("mail".into(), json!("m")), "another entry is not held up");
    assert!(slow.try_recv().is_err(), "the second change before the first was answered");
    gate.add_permits(2);
    assert_eq!(next(&mut slow).await, ("billing".into(), json!(2)));
    unbind(&worker, "configuration", "slow");
    gate.add_permits(1);
    set(&worker, "billing", json!(4)).await;
    assert_eq!(next(&mut quick).await.0["new_value"], 4);
    assert!(slow.try_recv().is_err(), "nobody who has gone is called");
}

#[tokio::test]
async fn a_binding_that_is_registered_anew_is_told_what_waited() {
    let fake = FakeEngine::new();
    let (worker, _folder) = worker(&fake).await;
    register(&worker, "billing").await;
    let (mut slow, gate) = gated(&fake, "slow");
    bind(&worker, "configuration", "slow", json!({}));
    set(&worker, "billing", json!(1)).await;
    set(&worker, "billing", json!(2)).await;
    bind(&worker, "configuration", "slow", json!({}));
    gate.add_permits(2);
    assert_eq!(next(&mut slow).await, ("billing".into(), json!(1)));
    assert_eq!(next(&mut slow).await, ("billing".into(), json!(2)));
}

/// Many at once: what a function is told last is what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_in_the_order_they_were_made_in() {
    let fake = FakeEngine::new();
    let (worker, _folder) = worker(&fake).await;
    register(&worker, "billing").await;
    let mut heard = fake.note("heard");
    bind(&worker, "configuration", "heard", json!({}));
    let setting: Vec<_> = (1..=100)
        .map(|number| {
            let worker = Arc::clone(&worker);
            tokio::spawn(async move { set(&worker, "billing", json!(number)).await })
        })
        .collect();
    for task in setting {
        task.await.expect("no panic");
    }
    let mut before = json!(0);
    for _ in 1..=100 {
        let event = next(&mut heard).await.0;
        assert_eq!(event["old_value"], before);
        before = event["new_value"].clone();
    }
}
