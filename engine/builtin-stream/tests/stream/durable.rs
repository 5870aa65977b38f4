//! What was acknowledged survives `kill -9`.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fake::FakeEngine;
use crate::{item, worker};

const FOLDER: &str = "STREAM_TEST_FOLDER";

fn in_folder(folder: &str) -> Value {
    json!({ "adapter": { "name": "kv", "config": { "file_path": folder } } })
}

/// This test is its own child, which writes until it is killed and says what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_are_there_after_kill_9() {
    if let Ok(folder) = env::var(FOLDER) {
        let fake = FakeEngine::new();
        let worker = worker(&fake, in_folder(&folder)).await;
        for number in 0.. {
            worker.set("room", &number.to_string(), json!(number)).await;
            println!("acknowledged {number}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("text");
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["durable::acknowledged_writes_are_there_after_kill_9", "--exact", "--nocapture"])
        .env(FOLDER, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut acknowledged = None;
    for line in lines.map_while(Result::ok) {
        let number = line.rsplit_once("acknowledged ").and_then(|(_, number)| number.parse::<u64>().ok());
        acknowledged = number.or(acknowledged);
        if acknowledged == Some(100) {
            child.kill().expect("killed");
        }
    }
    let _ = child.wait();
    let last = acknowledged.expect("acknowledged writes");
    assert!(last >= 100);
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_folder(path)).await;
    for number in 0..=last {
        assert_eq!(worker.call("get", item("room", &number.to_string())).await, Some(json!(number)));
    }
}
