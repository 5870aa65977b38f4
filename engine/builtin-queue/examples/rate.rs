//! How fast the `builtin` adapter is on this machine's disk: `cargo run --release -p builtin-queue --example rate`.

#[path = "../../builtin-pubsub/tests/fake/mod.rs"]
mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_builtin::Builtin;
use fake::{FakeEngine, bind, call, next};
use serde_json::json;

const SLOWLY: usize = 500;
const MESSAGES: usize = 100_000;
const PUBLISHERS: usize = 256;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir_in(".").expect("a folder on the disk");
    let fake = FakeEngine::new();
    let settings = json!({ "adapter": { "name": "builtin", "config": { "file_path": folder.path() } } });
    let worker = builtin_queue::create(fake.engine(), settings).await.expect("a worker");
    worker.start().await.expect("started");
    let mut seen = fake.note("f");
    bind(&worker, "durable:subscriber", "f", json!({ "topic": "t", "queue_config": { "concurrency": 64 } }));
    let mut latencies = Vec::with_capacity(SLOWLY);
    for number in 0..SLOWLY {
        let begun = Instant::now();
        publish(&worker, number).await;
        next(&mut seen).await;
        latencies.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    latencies.sort();
    println!("one at a time: p50 {:?}, p99 {:?}", latencies[SLOWLY / 2], latencies[SLOWLY * 99 / 100]);
    let begun = Instant::now();
    for publisher in 0..PUBLISHERS {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move {
            for number in (publisher..MESSAGES).step_by(PUBLISHERS) {
                publish(&worker, number).await;
            }
        });
    }
    for _ in 0..MESSAGES {
        next(&mut seen).await;
    }
    let rate = MESSAGES as f64 / begun.elapsed().as_secs_f64();
    println!("{PUBLISHERS} publishers: {rate:.0} messages/s published, synced and delivered");
}

async fn publish(worker: &Arc<dyn Builtin>, number: usize) {
    let payload =
        json!({ "topic": "t", "data": { "number": number, "text": "a payload of some length, as orders have" } });
    call(worker, "iii::durable::publish", payload).await.expect("published");
}
