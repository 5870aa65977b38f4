//! The worker with a pretend engine, and with a real store, RabbitMQ and Redis.

#[path = "../../../builtin-pubsub/tests/fake/mod.rs"]
mod fake;

mod bridge;
mod named;
mod rabbitmq;
mod redis;
mod settings;
mod topics;

use std::collections::BTreeSet;
use std::sync::Arc;

use engine_builtin::{Builtin, ErrorBody};
use fake::{FakeEngine, PATIENCE, call};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A worker that has started.
pub(crate) async fn worker(fake: &Arc<FakeEngine>, settings: Value) -> Arc<dyn Builtin> {
    let worker = builtin_queue::create(fake.engine(), settings).await.expect("a worker");
    worker.start().await.expect("started");
    worker
}

/// Settings that keep messages in this folder.
pub(crate) fn kept_in(folder: &TempDir) -> Value {
    json!({ "adapter": { "name": "builtin", "config": { "file_path": folder.path() } } })
}

pub(crate) fn in_memory() -> Value {
    json!({ "adapter": { "name": "builtin", "config": { "store_method": "in_memory" } } })
}

/// Its file is free again.
pub(crate) async fn stopped(worker: Arc<dyn Builtin>, settings: &Value, fake: &Arc<FakeEngine>) -> Arc<dyn Builtin> {
    worker.stop().await;
    drop(worker);
    let again = async {
        loop {
            // The store's thread lets go of the file when it gets to it.
            match builtin_queue::create(fake.engine(), settings.clone()).await {
                Ok(worker) => break worker,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the store opens again")
}

pub(crate) async fn publish(worker: &Arc<dyn Builtin>, topic: &str, data: Value) {
    let published = call(worker, "iii::durable::publish", json!({ "topic": topic, "data": data })).await;
    assert_eq!(published, Ok(None));
}

pub(crate) async fn enqueue(
    worker: &Arc<dyn Builtin>,
    queue: &str,
    function_id: &str,
    data: Value,
) -> Result<String, ErrorBody> {
    let payload = json!({ "queue": queue, "function_id": function_id, "data": data });
    let answer = call(worker, "iii-queue::enqueue", payload).await?.expect("a receipt");
    Ok(answer["messageReceiptId"].as_str().expect("an id").to_owned())
}

pub(crate) async fn ask(worker: &Arc<dyn Builtin>, function_id: &str, data: Value) -> Value {
    call(worker, function_id, data).await.expect("an answer").expect("a result")
}

/// Waits until a topic or queue has this many messages waiting and this many dead.
pub(crate) async fn has(worker: &Arc<dyn Builtin>, name: &str, depth: u64, dead: u64) {
    let has = async {
        loop {
            let stats = ask(worker, "engine::queue::topic_stats", json!({ "topic": name })).await;
            if stats["depth"] == depth && stats["dlq_depth"] == dead {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, has).await;
    if waited.is_err() {
        let stats = ask(worker, "engine::queue::topic_stats", json!({ "topic": name })).await;
        panic!("`{name}` should have {depth} waiting and {dead} dead: {stats}");
    }
}

/// The next `count` numbers that a function is called with, in any order.
pub(crate) async fn numbers<T>(
    seen: &mut tokio::sync::mpsc::UnboundedReceiver<(Value, T)>,
    count: u64,
) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    while numbers.len() < usize::try_from(count).expect("a size") {
        numbers.insert(fake::next(seen).await.0.as_u64().expect("a number"));
    }
    numbers
}

pub(crate) fn refuse(fake: &FakeEngine, function_id: &str) {
    fake.offer(function_id, |_| async { Err(ErrorBody::new("invocation_failed", "not today")) });
}
