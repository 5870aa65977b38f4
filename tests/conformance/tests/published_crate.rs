//! The published crate's own tests, unchanged, against the engine.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use conformance::Conformance;
use serde_json::Value;
use test_rig::{Answer, sdk};

/// What its tests of access control expect of the guarded listener.
const GUARD: &str = r#"
      middleware_function_id: "test::rbac-worker::middleware"
      rbac:
        auth_function_id: "test::rbac-worker::auth"
        on_function_registration_function_id: "test::rbac-worker::on-function-reg"
        on_trigger_type_registration_function_id: "test::rbac-worker::on-trigger-type-reg"
        on_trigger_registration_function_id: "test::rbac-worker::on-trigger-reg"
        expose_functions:
          - match("test::ew::public::*")
          - match("engine::functions::list")
          - metadata: {ew_public: true}"#;

const QUEUES: &str = "{payment: {type: fifo, message_group_field: transaction_id}}";

/// As many as version 0.19.6 has, with the examples in its documentation.
const TESTS: usize = 174;

#[test]
fn the_published_crates_own_tests_pass() {
    let package = copy_of_the_crate();
    let engine = Conformance::start(GUARD, QUEUES);
    let mut tests = Command::new("cargo");
    tests.args(["test", "--locked", "--no-fail-fast", "--target-dir"]).arg(sdk::own_target());
    tests.current_dir(&package).env("III_URL", engine.rig.url()).env("III_HTTP_URL", &engine.http);
    tests.env("III_RBAC_WORKER_URL", &engine.guarded);
    let answer = Answer::of(&mut tests);
    assert_eq!(answer.status, 0, "{}\n{}", answer.stdout, answer.stderr);
    let passed: usize = answer.stdout.lines().filter_map(passed).sum();
    assert_eq!(passed, TESTS, "{}", answer.stdout);
}

/// The number in `test result: ok. 54 passed; ...`.
fn passed(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ok. ")?.split_once(" passed")?.0.parse().ok()
}

/// What cargo has downloaded for the programs, where it can be built.
fn copy_of_the_crate() -> PathBuf {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/rust/Cargo.toml");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &platform]);
    let answer = Answer::of(metadata.arg("--manifest-path").arg(programs));
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let metadata: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let crate_itself = packages.iter().find(|package| package["name"] == "iii-sdk").expect("iii-sdk");
    let source = Path::new(crate_itself["manifest_path"].as_str().expect("a path")).parent().expect("a folder");

    fs::create_dir_all(sdk::own_target()).expect("a folder");
    let copy = sdk::own_target().join(source.file_name().expect("a name"));
    let _ = fs::remove_dir_all(&copy);
    // Times are kept, so that cargo builds it once.
    let copied = Answer::of(Command::new("cp").arg("--archive").arg(source).arg(&copy));
    assert_eq!(copied.status, 0, "{}", copied.stderr);
    let mut manifest = File::options().append(true).open(copy.join("Cargo.toml")).expect("its manifest");
    manifest.write_all(b"\n[workspace]\n").expect("a workspace of its own");
    copy
}
