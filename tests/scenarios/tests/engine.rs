//! The engine's good manners: what it says when it cannot start, and what it leaves behind.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use test_rig::{Answer, Rig, eventually, kill, wait_gone};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn a_port_in_use_is_named_and_ends_with_status_one() {
    let rig = Rig::builder().start();
    let answer = Answer::of(&mut rig.iii_command(&["--config", "config.yaml"]));
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains(&rig.port().to_string()), "{answer:?}");
}

#[test]
fn a_missing_configuration_names_the_file_and_the_way_out() {
    let rig = Rig::builder().start();
    let answer = Answer::of(&mut rig.iii_command(&["--config", "absent.yaml"]));
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("absent.yaml") && answer.stderr.contains("--use-default-config"), "{answer:?}");
}

#[test]
fn a_second_daemon_for_the_same_engine_is_refused() {
    let rig = Rig::builder().start();
    let daemon = rig.family_named("iii-daemon workers").into_iter().next().expect("the worker daemon");
    let mut words = daemon.command.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).current_dir(rig.project()).env("III_HOME", rig.home());
    let answer = Answer::of(&mut command);
    assert_eq!(answer.status, 1, "{answer:?}");
    let said = answer.stdout + &answer.stderr;
    assert!(said.contains(&daemon.pid.to_string()), "the holder is named: {said}");
}

#[test]
fn an_orderly_stop_ends_with_status_zero_and_leaves_nothing() {
    let rig = Rig::builder().sandboxes().start();
    let (status, left) = rig.stop();
    assert_eq!(status, Some(0));
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_killed_engine_leaves_nothing() {
    let left = Rig::builder().sandboxes().start().kill_engine();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_killed_daemon_is_started_again() {
    let rig = Rig::builder().sandboxes().start();
    for name in ["iii-daemon sandboxes", "iii-daemon workers"] {
        let daemon = rig.family_named(name).into_iter().next().expect("a daemon");
        kill(daemon.pid, Signal::SIGKILL);
        assert!(wait_gone(&[daemon], PATIENCE).is_empty());
    }
    let back = eventually(PATIENCE, || rig.trigger("sandbox::list", &json!({})).ok());
    assert!(back.is_some(), "{}", rig.log());
    let back = eventually(PATIENCE, || rig.trigger("worker::list", &json!({})).ok());
    assert!(back.is_some(), "{}", rig.log());
}

#[test]
fn a_call_to_nobody_is_a_typed_error() {
    let rig = Rig::builder().start();
    let error = rig.trigger("no::such", &json!({})).expect_err("nobody owns it");
    assert_eq!(error["code"], "function_not_found");
    assert!(error["message"].as_str().unwrap_or("").contains("no::such"), "{error}");
}
