//! A developer's day in one engine, typed as a person would: a folder becomes a worker, is called, edited and entered, and
//! beside it code runs that nobody trusts.

use std::time::Duration;

use serde_json::{Value, json};
use test_rig::{Answer, Driver, Rig, eventually};

const PATIENCE: Duration = Duration::from_secs(280);
const MANIFEST: &str = "name: bare\nruntime:\n  base_image: python\nscripts:\n  start: python3 worker.py\nresources:\n  cpus: 1\n  memory: 512\n";

/// `iii` with these words, at this rig's engine.
fn iii(rig: &Rig, words: &[&str]) -> Answer {
    let port = rig.port().to_string();
    let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    rig.iii(&[&words[..at], &["--port", port.as_str()], &words[at..]].concat())
}

/// What it printed, as JSON.
fn printed(rig: &Rig, words: &[&str]) -> Value {
    let answer = iii(rig, words);
    assert_eq!(answer.status, 0, "{words:?}: {answer:?}\n{}", rig.log());
    serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {answer:?}"))
}

#[test]
fn a_folder_becomes_a_worker_is_edited_and_entered_and_untrusted_code_runs_beside_it() {
    let rig = Rig::builder()
        .sandboxes()
        .file("bare/iii.worker.yaml", MANIFEST)
        .file("bare/worker.py", include_str!("guest/bare_worker.py"))
        .file("bare/ws.py", include_str!("guest/ws.py"))
        .file("bare/answer.txt", "first")
        .start();
    let added = iii(&rig, &["worker", "add", "./bare"]);
    assert_eq!(added.status, 0, "{added:?}\n{}", rig.log());

    assert_eq!(printed(&rig, &["trigger", "bare::answer"])["answer"], "first");
    let status = printed(&rig, &["worker", "status", "bare", "--json"]);
    let driver = Driver::this();
    assert!(status.to_string().contains(&driver.name), "not {}: {status}", driver.name);

    rig.write("bare/answer.txt", "second");
    let answer = eventually(PATIENCE, || {
        let answer = iii(&rig, &["trigger", "bare::answer"]);
        (answer.status == 0 && answer.stdout.contains("second")).then_some(())
    });
    assert!(answer.is_some(), "the edit never arrived\n{}", rig.log());

    // Into the worker that runs: the file there is the edited one, and the kernel is not the host's.
    let script = "cat /workspace/answer.txt; echo; cat /proc/sys/kernel/random/boot_id; exit 3";
    let entered = iii(&rig, &["worker", "exec", "bare", "--", "sh", "-c", script]);
    let mut lines = entered.stdout.lines();
    assert_eq!((entered.status, lines.next()), (3, Some("second")), "{entered:?}");
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    assert!(lines.next().is_some_and(|guest| guest.len() == 36 && guest != host.trim()), "{entered:?}");

    let code =
        json!({ "image": "python", "lang": "python", "code": "print(6 * 7); open('/srv/mine', 'w')" }).to_string();
    let ran = printed(&rig, &["trigger", "sandbox::run", "--json", &code]);
    assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!("42\n"), &json!(0)), "{ran}");
    // It was somewhere else, and the worker has not noticed.
    assert_ne!(iii(&rig, &["worker", "exec", "bare", "--", "ls", "/srv/mine"]).status, 0);
    assert_eq!(printed(&rig, &["trigger", "bare::answer"])["answer"], "second");

    let removed = iii(&rig, &["worker", "remove", "bare", "--yes"]);
    assert_eq!(removed.status, 0, "{removed:?}");
    let left = eventually(PATIENCE, || rig.machines().is_empty().then_some(()));
    assert!(left.is_some(), "{:#?}", rig.machines());
}
