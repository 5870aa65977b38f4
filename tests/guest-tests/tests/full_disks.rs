//! Each disk the daemons write to, full: the reason and the next step are named, and nothing is left half done.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use test_rig::{Rig, eventually};

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

#[test]
fn a_disk_that_fills_fails_the_guests_writes_and_nothing_else() {
    let rig = Rig::builder().sandboxes().small_disk("run", "100m").start();
    let created = rig.call("sandbox::create", &json!({ "image": "python" }));
    let exec = |script: &str| {
        rig.call("sandbox::exec", &json!({ "sandbox_id": created["sandbox_id"], "cmd": "sh", "args": ["-c", script] }))
    };
    let filled = exec("dd if=/dev/urandom of=/var/fill bs=1M count=200 conv=fsync");
    assert_ne!(filled["exit_code"], 0, "{filled}");
    assert_eq!(exec("echo alive")["stdout"], "alive\n");
    let warned = eventually(PATIENCE, || rig.log().contains("on the host: No space left").then_some(()));
    assert!(warned.is_some(), "{}", rig.log());
    let stopped = rig.call("sandbox::stop", &json!({ "sandbox_id": created["sandbox_id"], "wait": true }));
    assert_eq!(stopped["stopped"], true);
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
