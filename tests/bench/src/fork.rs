//! A busy sandbox forked: how long it stands still, and when its children are of use.

use std::path::Path;
use std::time::{Duration, Instant};

use engine_client::Client;
use futures_util::future::join_all;
use serde_json::{Value, json};
use test_rig::{Driver, Feature, Process, Rig, RigBuilder};

use crate::machine;
use crate::report::{Report, Samples};
use crate::sandbox::{call, connect};

const ROUNDS: usize = 3;
/// Each is a layer of the source's disk, of which there may be 16.
const PAUSES: usize = 10;
const FORKS: usize = 5;
const _: () = assert!(PAUSES + FORKS < 16);
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
    runtime.block_on(async {
        installed(report).await;
        if let Some(kit) = machine::debian_kit("fifty children") {
            debian(report, &kit).await;
        }
    });
}

async fn installed(report: &mut Report) {
    let cold = {
        let (_rig, client) = booting(Rig::builder()).await;
        // Where processors hinder each other, many children take longer than they should.
        let [one, two] = [boots(&client, 1, 1).await, boots(&client, 1, 2).await];
        let name = format!("two cold boots at once, on {} processors", processors());
        report.row(&name, two, Some(("one cold boot", &one)), "");
        boots(&client, COLD_BOOTS, 1).await
    };
    let rig = forking(Rig::builder());
    let client = connect(&rig).await;
    pauses(report, &client).await;
    // Each snapshot is a layer of the source's disk: forks begin with another source.
    for (count, target) in [(1, ""), (10, ""), (50, "< 1")] {
        forks(report, &rig, &client, &Row { count, with: "", cold: &cold, target }).await;
    }
    memory(report, &rig, &client).await;
}

async fn debian(report: &mut Report, kit: &Path) {
    let cold = {
        let (_rig, client) = booting(Rig::builder().kit(kit)).await;
        boots(&client, COLD_BOOTS, 1).await
    };
    let rig = forking(Rig::builder().kit(kit));
    let client = connect(&rig).await;
    let row = Row { count: 50, with: ", Debian's kernel and QEMU", cold: &cold, target: "< 1" };
    forks(report, &rig, &client, &row).await;
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn forking(rig: RigBuilder) -> Rig {
    rig.sandboxes_with("max_concurrent_sandboxes: 60").start()
}

/// How long a busy sandbox stands still while it is saved.
async fn pauses(report: &mut Report, client: &Client) {
    let source = busy(client).await;
    let mut pauses = Vec::new();
    for _ in 0..PAUSES {
        let taken = call(client, "sandbox::snapshot", json!({ "sandbox_id": source })).await;
        pauses.push(taken["paused_ms"].as_f64().expect("a time"));
        call(client, "snapshot::delete", json!({ "snapshot": taken["snapshot_id"] })).await;
    }
    report.row("snapshot: the source stands still, 200 MiB touched", Samples::from_ms(pauses), None, "< 150 ms");
    let mut pauses = Vec::new();
    for _ in 0..FORKS {
        let (paused, child) = fork(client, &source, 1).await;
        pauses.push(paused);
        stop_all(client, child).await;
    }
    report.row("fork: the source stands still, 200 MiB touched", Samples::from_ms(pauses), None, "< 150 ms");
    call(client, "sandbox::stop", json!({ "sandbox_id": source, "wait": true })).await;
}

/// What is measured of some children at once.
struct Row<'a> {
    count: u32,
    /// Which software, if it is not the installed kit's.
    with: &'static str,
    /// Five boots with the same software.
    cold: &'a Samples,
    target: &'static str,
}

async fn forks(report: &mut Report, rig: &Rig, client: &Client, row: &Row<'_>) {
    let Row { count, with, cold, target } = *row;
    let source = busy(client).await;
    // What the first of its kind has to load.
    let (_, first) = children(client, &source, 1).await;
    stop_all(client, first).await;
    let mut times = Vec::new();
    let mut processor = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let before = [rig.machines(), rig.supervisors()];
        let (time, ids) = children(client, &source, count).await;
        times.push(time);
        for ((spent, now), before) in processor.iter_mut().zip([rig.machines(), rig.supervisors()]).zip(before) {
            spent.extend(now.into_iter().filter(|process| !before.contains(process)).map(processor_time));
        }
        stop_all(client, ids).await;
    }
    let name = format!("fork → {count} children have each answered an exec{with}");
    report.row(&name, Samples::from_durations(times), Some(("five cold boots, one after the other", cold)), target);
    for (spent, of) in processor.into_iter().zip(["the VM's process", "its supervisor and relay"]) {
        let name = format!("… of {count}{with}, a child's processor time: {of}");
        report.row(&name, Samples::from_durations(spent), None, "");
    }
    call(client, "sandbox::stop", json!({ "sandbox_id": source, "wait": true })).await;
}

/// Where sandboxes boot, and are no clones of a template.
async fn booting(rig: RigBuilder) -> (Rig, Client) {
    let rig = rig.sandboxes().env("III_NO_TEMPLATE", "1").start();
    let client = connect(&rig).await;
    call(&client, "sandbox::run", json!({ "image": "python", "code": "pass" })).await;
    (rig, client)
}

/// Some boots one after the other, or of some at once, each until it has answered an exec.
async fn boots(client: &Client, in_a_row: usize, at_once: usize) -> Samples {
    let boot = || async {
        let id = call(client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
        answers(client, &id).await;
        id
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut ids = Vec::new();
        for _ in 0..in_a_row {
            ids.extend(join_all((0..at_once).map(|_| boot())).await);
        }
        rounds.push(start.elapsed());
        stop_all(client, ids).await;
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

/// Milliseconds that the source stood still, and its children.
async fn fork(client: &Client, source: &Value, count: u32) -> (f64, Vec<Value>) {
    let forked = call(client, "sandbox::fork", json!({ "sandbox_id": source, "count": count })).await;
    let ids = forked["sandbox_ids"].as_array().cloned().expect("ids");
    assert_eq!(ids.len(), count as usize);
    (forked["paused_ms"].as_f64().expect("a time"), ids)
}

/// From the request until every child has answered.
async fn children(client: &Client, source: &Value, count: u32) -> (Duration, Vec<Value>) {
    let start = Instant::now();
    let (_, ids) = fork(client, source, count).await;
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
