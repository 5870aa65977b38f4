//! From a saved file to a process that runs it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_rig::Rig;

use crate::report::{Report, Samples};
use crate::sandbox::{call, connect};

const EDITS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = "name: echoer\nruntime:\n  base_image: python\nscripts:\n  install: \"\"\n  \
                        start: cat version; exec sleep 100000\nresources:\n  cpus: 1\n  memory: 512\n";

pub(crate) fn measure(report: &mut Report) {
    let rig = Rig::builder().file("echoer/iii.worker.yaml", MANIFEST).file("echoer/version", "version 0\n").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = connect(&rig).await;
        let source = json!({ "kind": "local", "path": rig.project().join("echoer") });
        call(&client, "worker::add", json!({ "source": source, "wait": false })).await;
        let said = |text: String| {
            let client = client.clone();
            async move {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    let logs = call(&client, "worker::logs", json!({ "name": "echoer", "tail": 1 })).await;
                    if logs["stdout"].as_array().into_iter().flatten().any(|line| line == &Value::from(text.as_str())) {
                        return;
                    }
                    assert!(Instant::now() < deadline, "never said {text}");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        };
        said("version 0".into()).await;
        let mut edits = Vec::new();
        for number in 1..=EDITS {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let start = Instant::now();
            rig.write("echoer/version", &format!("version {number}\n"));
            said(format!("version {number}")).await;
            edits.push(start.elapsed());
        }
        report.row("edit → process restarted, with the new file", Samples::from_durations(edits), None, "≤ 300 ms");
    });
}
