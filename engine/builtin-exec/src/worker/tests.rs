//! The worker with real processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_rig::{Process, eventually, kill, wait_gone};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Names the folder that [`an_engine_that_is_killed`] runs in, and its settings.
const STAND_IN: &str = "III_EXEC_TEST_STAND_IN";

async fn started(folder: &Path, settings: Value) -> Exec {
    let exec = Exec::new(settings, folder.to_owned()).expect("a worker");
    exec.start().await.expect("started");
    exec
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn written(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

async fn until(mut question: impl FnMut() -> bool + Send + 'static) {
    let seen = tokio::task::spawn_blocking(move || eventually(PATIENCE, || question().then_some(()))).await;
    seen.expect("no panic").expect("it happened in time");
}

/// Waits until a command has written the numbers of processes, one per line, and finds them.
async fn processes(folder: &Path, name: &'static str, count: usize) -> Vec<Process> {
    let place = folder.to_owned();
    until(move || written(&place, name).matches('\n').count() >= count).await;
    let found = |line: &str| Process::find(line.parse().expect("a number")).expect("it runs");
    written(folder, name).lines().map(found).collect()
}

async fn gone(processes: Vec<Process>) {
    let left = tokio::task::spawn_blocking(move || wait_gone(&processes, PATIENCE)).await.expect("no panic");
    assert!(left.is_empty(), "left running: {left:#?}");
}

#[tokio::test]
async fn commands_run_one_after_another_each_in_its_own_session() {
    let folder = folder();
    let session = "cut -d ' ' -f 1,6 /proc/$$/stat >> sessions";
    let exec =
        started(folder.path(), json!({ "exec": ["sleep 0.2; echo one >> log", "echo two >> log", session] })).await;
    let place = folder.path().to_owned();
    until(move || written(&place, "sessions").ends_with('\n')).await;
    assert_eq!(written(folder.path(), "log"), "one\ntwo\n");
    let sessions = written(folder.path(), "sessions");
    let (process, session) = sessions.trim().split_once(' ').expect("two numbers");
    assert_eq!(process, session);
    exec.stop().await;
}

#[tokio::test]
async fn a_command_that_fails_stops_the_pipeline() {
    let folder = folder();
    let exec =
        started(folder.path(), json!({ "exec": ["echo one >> log; exit 3", "echo two >> log"], "watch": ["again"] }))
            .await;
    let place = folder.path().to_owned();
    until(move || written(&place, "log") == "one\n").await;
    fs::write(folder.path().join("again"), "").expect("written");
    let place = folder.path().to_owned();
    until(move || written(&place, "log") == "one\none\n").await;
    exec.stop().await;
    assert_eq!(written(folder.path(), "log"), "one\none\n");
}

#[tokio::test]
async fn stopping_asks_first_and_kills_what_does_not_listen() {
    let folder = folder();
    let polite = "trap 'echo bye > bye; exit' TERM; echo $$ >> pids; sleep 1000 & wait";
    let exec = started(folder.path(), json!({ "exec": [polite] })).await;
    let running = processes(folder.path(), "pids", 1).await;
    exec.stop().await;
    assert_eq!(written(folder.path(), "bye"), "bye\n");
    gone(running).await;

    let stubborn = "trap '' TERM; echo $$ >> stubborn; sleep 1000 & echo $! >> stubborn; wait; wait";
    let exec = started(folder.path(), json!({ "exec": [stubborn] })).await;
    let running = processes(folder.path(), "stubborn", 2).await;
    exec.stop().await;
    gone(running).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_ended_with_the_rest() {
    let folder = folder();
    let exec =
        started(folder.path(), json!({ "exec": ["sleep 1000 & echo $! >> pids", "echo $$ >> pids; exec sleep 1000"] }))
            .await;
    let running = processes(folder.path(), "pids", 2).await;
    exec.stop().await;
    gone(running).await;
}

#[tokio::test]
async fn a_change_of_a_watched_file_ends_all_and_starts_again() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("src/deep")).expect("folders");
    let settings =
        json!({ "exec": ["cat src/deep/a.txt >> log", "echo $$ >> pids; exec sleep 1000"], "watch": ["src/**/*.txt"] });
    fs::write(folder.path().join("src/deep/a.txt"), "first\n").expect("written");
    let exec = started(folder.path(), settings).await;
    let first = processes(folder.path(), "pids", 1).await;
    fs::write(folder.path().join("src/deep/a.txt"), "second\n").expect("written");
    gone(first).await;
    let place = folder.path().to_owned();
    until(move || written(&place, "log") == "first\nsecond\n" && written(&place, "pids").lines().count() == 2).await;
    exec.stop().await;
}

#[tokio::test]
async fn a_watch_that_cannot_be_is_named() {
    let error = Exec::new(json!({ "exec": ["true"], "watch": ["src/{a"] }), folder().path().to_owned()).err();
    assert!(error.expect("refused").to_string().starts_with("watch: "));
}

#[tokio::test]
async fn nothing_is_left_of_an_engine_that_is_killed() {
    let folder = folder();
    let commands = ["sleep 1000 & echo $! >> pids", "echo $$ >> pids; (sleep 1000 & echo $! >> pids; wait)"];
    let settings = json!({ "exec": commands, "watch": ["*.txt"] });
    let mut engine = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "worker::tests::an_engine_that_is_killed", "--ignored", "--nocapture"])
        .env(STAND_IN, json!([folder.path(), settings]).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let running = processes(folder.path(), "pids", 3).await;
    kill(i32::try_from(engine.id()).expect("a number"), Signal::SIGKILL);
    engine.wait().expect("its end");
    gone(running).await;
}

#[tokio::test]
#[ignore = "is the engine of the test before, in a process of its own"]
async fn an_engine_that_is_killed() {
    let Ok(text) = std::env::var(STAND_IN) else { panic!("{STAND_IN} is not set") };
    let (folder, settings): (PathBuf, Value) = serde_json::from_str(&text).expect("a folder and settings");
    let _exec = started(&folder, settings).await;
    std::future::pending().await
}
