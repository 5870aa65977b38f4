//! The published SDKs, unmodified, from their registries; installed once per machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::rig::{Answer, Rig};

pub const PYTHON_SDK: &str = "iii-sdk==0.19.7";
pub const NPM_SDK: &str = "iii-sdk@0.22.1";

/// Starts `program`, a Python file, with the SDK in reach and the engine's address in `III_URL`.
///
/// # Panics
/// When the SDK cannot be installed.
#[must_use]
pub fn start_python(rig: &Rig, program: &Path) -> Child {
    let folder = cache(&PYTHON_SDK.replace("==", "-"));
    let ready = folder.join("ready");
    if !ready.exists() {
        eprintln!("installing {PYTHON_SDK} from the Python package index");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", PYTHON_SDK]));
        std::fs::write(ready, "").expect("a mark");
    }
    start(rig, Command::new(folder.join("bin/python")).arg(program))
}

/// As [`start_python`], for a JavaScript module.
///
/// # Panics
/// When the SDK cannot be installed.
#[must_use]
pub fn start_node(rig: &Rig, program: &Path) -> Child {
    let folder = cache(&NPM_SDK.replace('@', "-"));
    if !folder.join("ready").exists() {
        eprintln!("installing {NPM_SDK} from the npm registry");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("package.json"), "{\"private\":true,\"type\":\"module\"}").expect("package.json");
        run(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", NPM_SDK]).current_dir(&folder));
        std::fs::write(folder.join("ready"), "").expect("a mark");
    }
    // A module finds its packages from where it is.
    let script = folder.join(program.file_name().expect("a file name"));
    std::fs::copy(program, &script).expect("the program's copy");
    start(rig, Command::new("node").arg(script))
}

/// The last line of JSON that `program` printed.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn summary(program: &str, output: &str) -> Value {
    let line = output.lines().rev().find(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{program} said: {output}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{program}: {error}: {line}"))
}

fn cache(name: &str) -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"), PathBuf::from);
    base.join("iii/sdk").join(name)
}

fn run(command: &mut Command) {
    let answer = Answer::of(command);
    assert_eq!(answer.status, 0, "{command:?}: {answer:?}");
}

fn start(rig: &Rig, command: &mut Command) -> Child {
    command.env("III_URL", rig.url()).env("OTEL_ENABLED", "false").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
