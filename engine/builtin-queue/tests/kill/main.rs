//! What was acknowledged is delivered after `kill -9`: this program kills copies of itself, over and over, at the same
//! store.

#[path = "../../../builtin-pubsub/tests/fake/mod.rs"]
mod fake;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use engine_builtin::Builtin;
use fake::{FakeEngine, bind, call};
use serde_json::{Value, json};

const LIVES: u64 = 4;
const PER_LIFE: u64 = 400;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, victim, folder, first] if victim == "victim" => {
            runtime.block_on(victim_life(Path::new(folder), first.parse().expect("a number")));
        }
        _ => runtime.block_on(lives()),
    }
}

async fn lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut acknowledged, mut delivered) = (BTreeSet::new(), BTreeSet::new());
    for life in 0..LIVES {
        let mut victim = Command::new(std::env::current_exe().expect("this program"))
            .arg("victim")
            .arg(folder.path())
            .arg((life * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a copy of this program");
        let mut told = 0;
        for line in BufReader::new(victim.stdout.take().expect("its output")).lines().map_while(Result::ok) {
            let Some((what, number)) = line.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            if what == "acknowledged" { &mut acknowledged } else { &mut delivered }.insert(number);
            told += u64::from(what == "acknowledged");
            if told == PER_LIFE {
                // What it still says comes from before its death.
                victim.kill().expect("killed");
            }
        }
        victim.wait().expect("gone");
        assert!(told >= PER_LIFE, "life {life} ended by itself after {told}");
    }
    let fake = FakeEngine::new();
    let (topic, queue) = (fake.note("topic"), fake.note("queue"));
    let worker = worker(&fake, folder.path(), 10).await;
    bind(&worker, "durable:subscriber", "topic", json!({ "topic": "t" }));
    for mut seen in [topic, queue] {
        // Every life has published to both: even numbers to the topic, odd ones to the queue.
        while !acknowledged.is_subset(&delivered) {
            match tokio::time::timeout(std::time::Duration::from_secs(5), seen.recv()).await {
                Ok(Some((number, _))) => delivered.insert(number.as_u64().expect("a number")),
                _ => break,
            };
        }
    }
    let lost: Vec<_> = acknowledged.difference(&delivered).collect();
    assert!(lost.is_empty(), "of {} acknowledged, {} were lost: {lost:?}", acknowledged.len(), lost.len());
    println!("{} acknowledged over {LIVES} lives, none lost", acknowledged.len());
}

/// Publishes and enqueues as fast as it can, consumes some of it, and tells of both.
async fn victim_life(folder: &Path, first: u64) {
    let fake = FakeEngine::new();
    for function_id in ["topic", "queue"] {
        fake.offer(function_id, |number| async move {
            tell("delivered", &number);
            Ok(Value::Null)
        });
    }
    let worker = worker(&fake, folder, 1).await;
    bind(&worker, "durable:subscriber", "topic", json!({ "topic": "t", "queue_config": { "concurrency": 1 } }));
    let publishers = (0..8).map(|publisher| {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move {
            for number in (first + publisher..).step_by(8) {
                let answer = if number % 2 == 0 {
                    call(&worker, "iii::durable::publish", json!({ "topic": "t", "data": number })).await
                } else {
                    let payload = json!({ "queue": "default", "function_id": "queue", "data": number });
                    call(&worker, "iii-queue::enqueue", payload).await
                };
                answer.expect("acknowledged");
                tell("acknowledged", &json!(number));
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.expect("it goes on for ever");
    }
}

fn tell(what: &str, number: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what} {number}").and_then(|()| out.flush());
}

async fn worker(fake: &Arc<FakeEngine>, folder: &Path, concurrency: u64) -> Arc<dyn Builtin> {
    let settings = json!({
        "adapter": { "name": "builtin", "config": { "file_path": folder } },
        "queue_configs": { "default": { "concurrency": concurrency } },
    });
    let worker = builtin_queue::create(fake.engine(), settings).await.expect("a worker");
    worker.start().await.expect("started");
    worker
}
