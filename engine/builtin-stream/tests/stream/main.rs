//! The worker with a pretend engine, real sockets and a real Redis.

#[path = "../../../builtin-pubsub/tests/fake/mod.rs"]
mod fake;

mod adapters;
mod bridge;
mod durable;
mod functions;
mod sockets;
mod subscriber;

use std::sync::Arc;

use builtin_stream::Stream;
use engine_builtin::Builtin;
use fake::FakeEngine;
use serde_json::{Value, json};

pub(crate) struct Worker {
    pub(crate) builtin: Arc<dyn Builtin>,
    pub(crate) stream: Arc<Stream>,
}

/// A worker that listens on a free port.
pub(crate) async fn worker(fake: &Arc<FakeEngine>, mut settings: Value) -> Worker {
    settings["port"] = json!(0);
    settings["host"] = json!("127.0.0.1");
    let stream = Arc::new(Stream::create(fake.engine(), settings, None).await.expect("a worker"));
    stream.start().await.expect("started");
    Worker { builtin: Arc::<Stream>::clone(&stream), stream }
}

pub(crate) fn in_memory() -> Value {
    json!({ "adapter": { "name": "kv", "config": { "store_method": "in_memory" } } })
}

impl Worker {
    pub(crate) async fn call(&self, op: &str, data: Value) -> Option<Value> {
        fake::call(&self.builtin, &format!("stream::{op}"), data).await.expect("an answer")
    }

    pub(crate) async fn fail(&self, op: &str, data: Value) -> String {
        fake::call(&self.builtin, &format!("stream::{op}"), data).await.expect_err("an error").code
    }

    pub(crate) async fn set(&self, group: &str, item: &str, data: Value) {
        self.call("set", json!({ "stream_name": "chat", "group_id": group, "item_id": item, "data": data })).await;
    }
}

pub(crate) fn item(group: &str, item: &str) -> Value {
    json!({ "stream_name": "chat", "group_id": group, "item_id": item })
}

pub(crate) fn item_with(group: &str, item_id: &str, field: &str, value: Value) -> Value {
    let mut item = item(group, item_id);
    item[field] = value;
    item
}
