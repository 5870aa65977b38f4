//! A disk that is full, and has room again.

use std::fs::File;
use std::io::Write;
use std::path::Path;

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
    let rig = Rig::builder().small_disk("data", "24m").workers(WORKERS).start_engine_only();
    let bystander = Bystander::beside(&rig).await;
    let mut worker = worker(&rig).await;
    let ballast = rig.inside("data").join("ballast");
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
