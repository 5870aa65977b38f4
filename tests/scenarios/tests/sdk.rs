//! The published SDKs against the engine, unmodified.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use test_rig::{Answer, Rig};

const PYTHON_SDK: &str = "iii-sdk==0.19.7";
const NPM_SDK: &str = "iii-sdk@0.22.1";

fn cache(name: &str) -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"), PathBuf::from);
    base.join("iii/sdk").join(name)
}

fn run(command: &mut Command) {
    let answer = Answer::of(command);
    assert_eq!(answer.status, 0, "{command:?}: {answer:?}");
}

/// The interpreter of a virtual environment that has the SDK.
fn python() -> PathBuf {
    let folder = cache(&PYTHON_SDK.replace("==", "-"));
    let ready = folder.join("ready");
    if !ready.exists() {
        eprintln!("installing {PYTHON_SDK} from the Python package index");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", PYTHON_SDK]));
        std::fs::write(ready, "").expect("a mark");
    }
    folder.join("bin/python")
}

/// A folder whose `node_modules` has the SDK.
fn node_modules() -> PathBuf {
    let folder = cache(&NPM_SDK.replace('@', "-"));
    if !folder.join("ready").exists() {
        eprintln!("installing {NPM_SDK} from the npm registry");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("package.json"), "{\"private\":true,\"type\":\"module\"}").expect("package.json");
        run(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", NPM_SDK]).current_dir(&folder));
        std::fs::write(folder.join("ready"), "").expect("a mark");
    }
    folder
}

fn summary(name: &str, output: &[u8]) -> Value {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{name} said: {text}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"))
}

#[test]
fn python_and_node_call_each_other_ten_thousand_times() {
    let (python, node) = (python(), node_modules());
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
    let script = node.join("node_worker.mjs");
    std::fs::copy(programs.join("node_worker.mjs"), &script).expect("the node program");
    let rig = Rig::builder().start();
    let start = |command: &mut Command| {
        command.env("III_URL", rig.url()).env("OTEL_ENABLED", "false").stdin(Stdio::null());
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    };
    let in_python = start(Command::new(python).arg(programs.join("python_worker.py")));
    let in_node = start(Command::new("node").arg(script));
    for (name, child) in [("python", in_python), ("node", in_node)] {
        let output = child.wait_with_output().expect("an exit");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let summary = summary(name, &output.stdout);
        assert_eq!(summary["answered"], 10_000, "{name}: {summary}");
        assert_eq!(summary["typed_error"], true, "{name}: {summary}");
    }
}
