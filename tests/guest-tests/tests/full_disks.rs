//! Each disk the daemons write to, full: the reason and the next step are named, and nothing is left half done.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use test_rig::{Feature, Rig, eventually, supported};

const PATIENCE: Duration = Duration::from_secs(280);
const WEB_SOCKET: &str = include_str!("guest/ws.py");

fn run(rig: &Rig) -> Result<Value, Value> {
    rig.trigger("sandbox::run", &json!({ "image": "python", "code": "print('ok')" }))
}

fn assert_says(error: &Value, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A worker that prints `kib` KiB before it serves `talker::answer`.
fn talker(kib: usize) -> [(&'static str, String); 3] {
    let manifest = "name: talker\nruntime:\n  base_image: python\nscripts:\n  start: python3 worker.py\nresources:\n  cpus: 1\n  memory: 512\n";
    let worker = format!(
        "import ws\nfor _ in range({kib}):\n    print('x' * 1023)\nws.serve({{'talker::answer': lambda data: {{'answer': 'still here'}}}})\n"
    );
    [
        ("talker/iii.worker.yaml", manifest.to_owned()),
        ("talker/worker.py", worker),
        ("talker/ws.py", WEB_SOCKET.to_owned()),
    ]
}

fn add(rig: &Rig) -> Result<Value, Value> {
    let path = rig.project().join("talker");
    rig.trigger("worker::add", &json!({ "source": { "kind": "local", "path": path } }))
}

#[test]
fn a_full_disk_of_images_refuses_the_image() {
    let rig = Rig::builder().sandboxes().small_disk("images", "16m").start();
    let error = run(&rig).expect_err("the image does not fit");
    assert_says(&error, &["S102", "no space left", "images", "free some space"]);
    let images = rig.inside("images");
    assert_eq!((entries(&images.join("sha256")), entries(&images.join("tmp"))), (vec![], vec![]));
}

#[test]
fn a_full_disk_of_templates_means_boots_instead_of_clones() {
    if !supported(Feature::Templates) {
        return;
    }
    let rig = Rig::builder().sandboxes().small_disk("templates", "16m").start();
    let answer = run(&rig).unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(answer["stdout"], "ok\n");
    assert!(rig.log().contains("booting without a template"), "{}", rig.log());
    let left: Vec<String> =
        entries(&rig.inside("templates")).into_iter().filter(|name| name.starts_with(".building")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_full_disk_boots_no_sandbox() {
    let rig = Rig::builder().sandboxes().small_disk("run", "256k").start();
    let error = run(&rig).expect_err("the writable disk does not fit");
    assert_says(&error, &["S300", "64 MiB", "free some space"]);
    let left = fs::read_dir(rig.inside("run")).expect("run").flatten().any(|entry| entry.path().is_dir());
    assert!(!left, "{:?}", entries(&rig.inside("run")));
}

fn fill(rig: &Rig, sandbox: &Value, mib: u32) -> Result<Value, Value> {
    let script = format!("dd if=/dev/urandom of=/var/fill bs=1M count={mib} conv=fsync");
    rig.trigger("sandbox::exec", &json!({ "sandbox_id": sandbox, "cmd": "sh", "args": ["-c", script] }))
}

#[test]
fn a_disk_that_stays_full_ends_the_sandbox_and_says_why() {
    if !supported(Feature::WaitsForSpace) {
        return;
    }
    let rig = Rig::builder().sandboxes().small_disk("run", "100m").start();
    let created = rig.call("sandbox::create", &json!({ "image": "python" }));
    let error = fill(&rig, &created["sandbox_id"], 200).expect_err("it does not fit");
    assert_says(&error, &["S004", "full on the host", "free some space"]);
    assert!(rig.log().contains("the host's disk is full"), "{}", rig.log());
    // What it had written is gone with it.
    let again = eventually(PATIENCE, || run(&rig).ok());
    assert_eq!(again.map(|answer| answer["stdout"].clone()), Some(json!("ok\n")));
}

#[test]
fn a_disk_that_has_space_again_in_time_costs_a_pause_and_no_more() {
    if !supported(Feature::WaitsForSpace) {
        return;
    }
    let rig = Rig::builder().sandboxes().small_disk("run", "180m").start();
    let created = rig.call("sandbox::create", &json!({ "image": "python" }));
    let ballast = rig.inside("run").join("ballast");
    fs::write(&ballast, vec![1; 100 << 20]).expect("the ballast fits");
    let filled = std::thread::scope(|scope| {
        let filling = scope.spawn(|| fill(&rig, &created["sandbox_id"], 100));
        let full = eventually(PATIENCE, || rig.log().contains("the host's disk is full").then_some(()));
        fs::remove_file(&ballast).expect("removed");
        assert!(full.is_some(), "{}", rig.log());
        filling.join().expect("an answer")
    });
    let filled = filled.unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(filled["exit_code"], 0, "{filled}");
}

#[test]
fn a_full_disk_installs_no_worker() {
    let rig = talker(1)
        .iter()
        .fold(Rig::builder(), |rig, (path, text)| rig.file(path, text))
        .small_disk("workers", "256k")
        .start();
    let before = fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml");
    let error = add(&rig).expect_err("its disk does not fit");
    assert_says(&error, &["64 MiB", "free some space"]);
    assert_eq!(fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml"), before);
    assert_eq!(entries(&rig.inside("workers")), Vec::<String>::new());
}

#[test]
fn a_full_disk_of_logs_loses_lines_and_no_worker() {
    let rig = talker(2048)
        .iter()
        .fold(Rig::builder(), |rig, (path, text)| rig.file(path, text))
        .small_disk("logs", "256k")
        .start();
    let added = add(&rig).unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(added["awaited_ready"], true, "{added}");
    assert_eq!(rig.call("talker::answer", &json!({}))["answer"], "still here");
    let warned = eventually(PATIENCE, || rig.log().contains("are being lost").then_some(()));
    assert!(warned.is_some(), "{}", rig.log());
}
