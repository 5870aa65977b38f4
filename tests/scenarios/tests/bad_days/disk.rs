//! A disk that is full, and has room again.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use scenarios::{Bystander, RawWorker};
use serde_json::{Value, json};
use test_rig::Rig;

use crate::{code, worker};

const KIB: usize = 1024;

/// On the disk that is about to be full.
const ROOM: usize = 4096 * KIB;

/// All that the engine writes goes to `data`, which is small.
const WORKERS: &str = "  - name: configuration
    config: { adapter: { name: fs, config: { directory: '${III_HOME}/data/configuration' } } }
  - name: iii-state
    config: { adapter: { name: kv, config: { file_path: '${III_HOME}/data/state' } } }
  - name: iii-queue
    config: { adapter: { name: builtin, config: { file_path: '${III_HOME}/data/queue' } } }
  - name: iii-stream
    config: { port: 0, adapter: { name: kv, config: { file_path: '${III_HOME}/data/stream' } } }
";

struct Kind {
    set: &'static str,
    get: &'static str,
    refusal: &'static str,
    place: fn(usize) -> Value,
    value: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        set: "state::set",
        get: "state::get",
        refusal: "SET_ERROR",
        place: |n| json!({ "scope": "disk", "key": format!("key-{n}") }),
        value: "value",
    },
    Kind {
        set: "stream::set",
        get: "stream::get",
        refusal: "STREAM_SET_ERROR",
        place: |n| json!({ "stream_name": "disk", "group_id": "g", "item_id": format!("item-{n}") }),
        value: "data",
    },
];

impl Kind {
    async fn set(&self, worker: &mut RawWorker, n: usize) -> Result<Value, Value> {
        let mut request = (self.place)(n);
        request[self.value] = json!({ "n": n, "text": "x".repeat(64 * KIB) });
        worker.call(self.set, &request).await.expect("connected")
    }

    async fn is_there(&self, worker: &mut RawWorker, n: usize) {
        let value = worker.call(self.get, &(self.place)(n)).await.expect("connected").expect("an answer");
        assert_eq!(value["n"], n, "{} of {n} is there", self.get);
        assert_eq!(value["text"].as_str().map(str::len), Some(64 * KIB));
    }
}

/// The engine, and where to put what fills its disk.
async fn small_disk() -> (Rig, Bystander, PathBuf) {
    let rig = Rig::builder().small_disk("data", "24m").workers(WORKERS).start_engine_only();
    let bystander = Bystander::beside(&rig).await;
    let ballast = rig.inside("data").join("ballast");
    (rig, bystander, ballast)
}

/// Leaves room for little.
fn fill(ballast: &Path) {
    let mut file = File::create(ballast).expect("a file");
    let mut bytes = 0;
    while let Ok(written) = file.write(&[1; 64 * KIB]) {
        bytes += written;
    }
    file.set_len(bytes.saturating_sub(ROOM) as u64).expect("room is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_keeps_what_is_there_and_takes_writes_when_it_has_room() {
    let (rig, bystander, ballast) = small_disk().await;
    let mut worker = worker(&rig).await;
    for kind in &KINDS {
        fill(&ballast);
        let mut stored = 0;
        let refusal = loop {
            match kind.set(&mut worker, stored).await {
                Ok(_) => stored += 1,
                Err(error) => break Err(error),
            }
            assert!(stored < 1000, "the disk does not get full");
        };
        assert_eq!(code(&refusal), Some(kind.refusal), "{refusal:?}");
        assert!(stored > 0);
        for n in 0..stored {
            kind.is_there(&mut worker, n).await;
        }
        // Still full, still the same.
        assert_eq!(code(&kind.set(&mut worker, stored + 1).await), Some(kind.refusal));
        kind.is_there(&mut worker, 0).await;
        std::fs::remove_file(&ballast).expect("room is made");
        kind.set(&mut worker, stored).await.expect("there is room");
        for n in 0..=stored {
            kind.is_there(&mut worker, n).await;
        }
    }
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_messages_and_delivers_those_it_took_when_it_has_room() {
    let (rig, bystander, ballast) = small_disk().await;
    let (mut publisher, mut subscriber) = (worker(&rig).await, worker(&rig).await);
    fill(&ballast);
    let message = |n: usize| json!({ "topic": "disk", "data": { "n": n, "text": "x".repeat(64 * KIB) } });
    let mut taken = HashSet::new();
    let refusal = loop {
        let n = taken.len();
        match publisher.call("iii::durable::publish", &message(n)).await.expect("connected") {
            Ok(_) => drop(taken.insert(n as u64)),
            Err(error) => break error,
        }
        assert!(n < 1000, "the disk does not get full");
    };
    assert!(refusal["code"].as_str().is_some_and(|code| !code.is_empty()), "{refusal}");
    assert!(!taken.is_empty());
    std::fs::remove_file(&ballast).expect("room is made");
    publisher.call("iii::durable::publish", &message(taken.len())).await.expect("connected").expect("there is room");
    taken.insert(taken.len() as u64);
    subscriber.register("disk::take").await.expect("connected");
    let trigger = json!({
        "type": "registertrigger", "id": "disk", "trigger_type": "durable:subscriber", "function_id": "disk::take",
        "config": { "topic": "disk" },
    });
    subscriber.say(&trigger).await.expect("connected");
    while !taken.is_empty() {
        let call = subscriber.hear_call().await.expect("every message that was taken");
        taken.remove(&call["data"]["n"].as_u64().expect("a number"));
        subscriber.answer(&call, &Value::Null).await.expect("connected");
    }
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_settings_and_those_before_stay() {
    let (rig, bystander, ballast) = small_disk().await;
    let mut worker = worker(&rig).await;
    let entry = json!({ "id": "mine", "name": "mine", "description": "", "schema": {}, "initial_value": { "n": 1 } });
    worker.call("configuration::register", &entry).await.expect("connected").expect("registered");
    fill(&ballast);
    let large = json!({ "id": "mine", "value": { "n": 2, "text": "x".repeat(ROOM + ROOM / 2) } });
    let small = json!({ "id": "mine", "value": { "n": 3 } });
    let refusal = worker.call("configuration::set", &large).await.expect("connected").expect_err("it does not fit");
    assert!(refusal["code"].as_str().is_some_and(|code| !code.is_empty()), "{refusal}");
    let kept = worker.call("configuration::get", &json!({ "id": "mine" })).await.expect("connected").expect("a value");
    assert_eq!(kept["value"]["n"], 1, "{kept}");
    std::fs::remove_file(&ballast).expect("room is made");
    worker.call("configuration::set", &small).await.expect("connected").expect("there is room");
    let kept = worker.call("configuration::get", &json!({ "id": "mine" })).await.expect("connected").expect("a value");
    assert_eq!(kept["value"]["n"], 3, "{kept}");
    bystander.noticed_nothing(&rig).await;
}
