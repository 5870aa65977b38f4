//! What is on disk.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use engine_builtin::Builtin;
use serde_json::json;

use crate::fake_engine::{done, quiet_engine, state};
use crate::functions::answers_exactly;

/// Says to the test's own program, started anew, that it is to write there.
const WRITES_IN: &str = "TEST_WRITES_IN";

async fn state_in(folder: &Path) -> Arc<dyn Builtin> {
    state(quiet_engine().0, json!({"adapter": {"name": "kv", "config": {"file_path": folder}}})).await
}

#[tokio::test]
async fn a_file_answers_as_the_contract_says() {
    let folder = tempfile::tempdir().expect("a folder");
    answers_exactly(&state_in(&folder.path().join("state")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    if let Some(folder) = std::env::var_os(WRITES_IN) {
        return write_and_tell(Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "durable::what_was_acknowledged_survives_kill_9", "--nocapture"])
        .env(WRITES_IN, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut told = BufReader::new(writer.stdout.take().expect("its output")).lines();
    let mut acknowledged = Vec::new();
    let mut note = |line: std::io::Result<String>| {
        let line = line.expect("text");
        acknowledged.extend(line.strip_prefix("stored ").and_then(|number| number.parse::<u32>().ok()));
        acknowledged.len()
    };
    while note(told.next().expect("a writer that writes")) < 500 {}
    writer.kill().expect("kill -9");
    told.for_each(|line| {
        note(line);
    });
    writer.wait().expect("its end");
    let state = state_in(folder.path()).await;
    for number in acknowledged {
        let place = json!({"scope": "s", "key": number.to_string()});
        assert_eq!(done(&state, "get", place).await, number.to_string());
    }
    let list = done(&state, "list", json!({"scope": "s"})).await;
    let listed: Vec<u32> = serde_json::from_str(&list).expect("numbers");
    assert!(listed.len() >= 500);
}

/// Until it is killed: sixteen writes at once.
async fn write_and_tell(folder: &Path) {
    let state = state_in(folder).await;
    let writers = (0..16).map(|writer| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            for number in (writer..1_000_000).step_by(16) {
                done(&state, "set", json!({"scope": "s", "key": number.to_string(), "value": number})).await;
                println!("stored {number}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
}
