//! A busy sandbox forked: how long it stands still, and when its children are of use.

use std::time::{Duration, Instant};

use engine_client::Client;
use futures_util::future::join_all;
use serde_json::{Value, json};
use test_rig::{Driver, Feature, Process, Rig};

use crate::report::{Report, Samples};
use crate::sandbox::{call, connect};

const ROUNDS: usize = 3;
const PAUSES: usize = 10;
const COLD_BOOTS: usize = 5;

/// Touches 200 MiB, then goes on changing a little of it.
const BUSY: &str = "import time\ndata = bytearray(200 << 20)\nfor at in range(0, len(data), 4096):\n    data[at] = 1\n\
    open('/tmp/ready', 'w').close()\nwhile True:\n    for at in range(0, 4 << 20, 4096):\n        data[at] = (data[at] + 1) % 256\n    time.sleep(1)\n";

pub(crate) fn measure(report: &mut Report) {
    let driver = Driver::this();
    if let Some(reason) = driver.lacks(Feature::Snapshots) {
        eprintln!("not measured: forks ({}: {reason})", driver.name);
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cold = runtime.block_on(cold_boots());
    let rig = Rig::builder().sandboxes_with("max_concurrent_sandboxes: 60").start();
    runtime.block_on(async {
        let client = connect(&rig).await;
        call(&client, "sandbox::run", json!({ "image": "python", "code": "pass" })).await;
        let source = busy(&client).await;
        // What the first of its kind has to load.
        let (_, first) = children(&client, &source, 1).await;
        stop_all(&client, first).await;
        let mut pauses = Vec::new();
        for _ in 0..PAUSES {
            let taken = call(&client, "sandbox::snapshot", json!({ "sandbox_id": source })).await;
            pauses.push(taken["paused_ms"].as_f64().expect("a time"));
            call(&client, "snapshot::delete", json!({ "snapshot": taken["snapshot_id"] })).await;
        }
        report.row("snapshot: the source stands still, 200 MiB touched", Samples::from_ms(pauses), None, "< 150 ms");
        // Each snapshot is a layer of the source's disk: forks begin with another source.
        call(&client, "sandbox::stop", json!({ "sandbox_id": source, "wait": true })).await;
        for (count, target) in [(1, ""), (10, ""), (50, "< 1")] {
            let source = busy(&client).await;
            let mut times = Vec::new();
            let mut processor = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                let before = [rig.machines(), rig.supervisors()];
                let (time, ids) = children(&client, &source, count).await;
                times.push(time);
                for ((spent, now), before) in processor.iter_mut().zip([rig.machines(), rig.supervisors()]).zip(before)
                {
                    spent.extend(now.into_iter().filter(|process| !before.contains(process)).map(processor_time));
                }
                stop_all(&client, ids).await;
            }
            for (spent, of) in processor.into_iter().zip(["the VM's process", "its supervisor and relay"]) {
                report.row(
                    &format!("… of it a child's processor time: {of}"),
                    Samples::from_durations(spent),
                    None,
                    "",
                );
            }
            let name = format!("fork → {count} children have each answered an exec");
            report.row(
                &name,
                Samples::from_durations(times),
                Some(("five cold boots, one after the other", &cold)),
                target,
            );
            call(&client, "sandbox::stop", json!({ "sandbox_id": source, "wait": true })).await;
        }
        memory(report, &rig, &client).await;
    });
}

/// Five sandboxes booted without a template, one after the other, each until it has answered an exec.
async fn cold_boots() -> Samples {
    let rig = Rig::builder().sandboxes().env("III_NO_TEMPLATE", "1").start();
    let client = connect(&rig).await;
    call(&client, "sandbox::run", json!({ "image": "python", "code": "pass" })).await;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut ids = Vec::new();
        for _ in 0..COLD_BOOTS {
            let id = call(&client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
            answers(&client, &id).await;
            ids.push(id);
        }
        rounds.push(start.elapsed());
        stop_all(&client, ids).await;
    }
    Samples::from_durations(rounds)
}

async fn busy(client: &Client) -> Value {
    let created = call(client, "sandbox::create", json!({ "image": "python", "memory_mb": 512 })).await;
    let id = created["sandbox_id"].clone();
    let script = json!({ "sandbox_id": id, "path": "/tmp/busy.py", "content": BUSY });
    call(client, "sandbox::fs::write", script).await;
    let start = "nohup python3 /tmp/busy.py >/dev/null 2>&1 & while [ ! -e /tmp/ready ]; do sleep 0.1; done";
    let done = call(client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["sh", "-c", start] })).await;
    assert_eq!(done["exit_code"], 0, "{done}");
    id
}

/// From the request until every child has answered.
async fn children(client: &Client, source: &Value, count: u32) -> (Duration, Vec<Value>) {
    let start = Instant::now();
    let forked = call(client, "sandbox::fork", json!({ "sandbox_id": source, "count": count })).await;
    let ids = forked["sandbox_ids"].as_array().cloned().expect("ids");
    assert_eq!(ids.len(), count as usize);
    join_all(ids.iter().map(|id| answers(client, id))).await;
    (start.elapsed(), ids)
}

/// Of all its threads that still are, in user and kernel mode.
fn processor_time(process: Process) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid)).expect("its threads").flatten();
    let spent = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    Duration::from_nanos(spent.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum())
}

async fn answers(client: &Client, id: &Value) {
    let done = call(client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["true"] })).await;
    assert_eq!(done["exit_code"], 0, "{done}");
}

async fn stop_all(client: &Client, ids: Vec<Value>) {
    join_all(ids.iter().map(|id| call(client, "sandbox::stop", json!({ "sandbox_id": id, "wait": true })))).await;
}

/// What one more clone that does nothing costs, its supervisor included.
async fn memory(report: &mut Report, rig: &Rig, client: &Client) {
    const CLONES: usize = 8;
    let mut ids = Vec::new();
    for _ in 0..CLONES {
        ids.push(
            call(client, "sandbox::create", json!({ "image": "python", "memory_mb": 256 })).await["sandbox_id"].clone(),
        );
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let of = |processes: Vec<Process>| Samples::from_mib(processes.iter().map(|process| pss_mib(process.pid)));
    report.row("memory (PSS) of an idle clone: the VM's process", of(rig.machines()), None, "< 30 MiB");
    report.row("memory (PSS) of an idle clone: its supervisor and relay", of(rig.supervisors()), None, "");
    stop_all(client, ids).await;
}

fn pss_mib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("Pss");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("KiB");
    kib / 1024.0
}
