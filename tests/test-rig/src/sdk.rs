//! The published SDKs, unmodified, from their registries; each version installed once per machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::rig::{Answer, Rig, bin_dir};

/// A published SDK, by its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    Python(&'static str),
    Node(&'static str),
    /// The version is in the `Cargo.toml` of the programs.
    Rust,
}

pub const PYTHON: Sdk = Sdk::Python("0.19.7");
pub const NODE: Sdk = Sdk::Node("0.22.1");

impl Sdk {
    /// As its installer wants to hear it.
    #[must_use]
    pub fn package(self) -> String {
        match self {
            Self::Python(version) => format!("iii-sdk=={version}"),
            Self::Node(version) => format!("iii-sdk@{version}"),
            Self::Rust => "iii-sdk".to_owned(),
        }
    }

    /// A command that runs `program` with the SDK and the program's neighbours in reach. `folder` is for what that takes;
    /// it is created. A Rust program is `<package>/<subcommand>`.
    ///
    /// # Panics
    /// When the SDK cannot be installed.
    #[must_use]
    pub fn command(self, program: &Path, folder: &Path) -> Command {
        fs::create_dir_all(folder).expect("a folder for the program");
        match self {
            Self::Python(version) => {
                let mut command = Command::new(python(version).join("bin/python"));
                command.arg(program).env("PYTHONDONTWRITEBYTECODE", "1").current_dir(folder);
                command
            }
            Self::Node(version) => {
                place_modules(program, &node(version), folder);
                let mut command = Command::new("node");
                command.arg(program.file_name().expect("a file name")).current_dir(folder);
                command
            }
            Self::Rust => {
                let package = program.parent().expect("a package");
                let mut command = Command::new(build(package));
                command.arg(program.file_name().expect("a subcommand")).current_dir(folder);
                command
            }
        }
    }
}

/// Starts `program` with the engine's address in `III_URL`.
///
/// # Panics
/// When the SDK cannot be installed.
#[must_use]
pub fn start(rig: &Rig, sdk: Sdk, program: &Path) -> Child {
    let name = program.file_stem().expect("a file name").to_string_lossy().into_owned();
    let mut command = sdk.command(program, &rig.project().join(format!("program-{name}")));
    command.env("III_URL", rig.url()).env("OTEL_ENABLED", "false").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
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

/// A virtual environment with the SDK.
fn python(version: &'static str) -> PathBuf {
    let sdk = Sdk::Python(version).package();
    once(&format!("iii-sdk-{version}"), |folder| {
        eprintln!("installing {sdk} from the Python package index");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", &sdk]));
    })
}

/// A package that depends on the SDK.
fn node(version: &'static str) -> PathBuf {
    let sdk = Sdk::Node(version).package();
    once(&format!("iii-sdk-node-{version}"), |folder| {
        eprintln!("installing {sdk} from the npm registry");
        fs::create_dir_all(folder).expect("a folder");
        fs::write(folder.join("package.json"), "{\"private\":true,\"type\":\"module\"}").expect("package.json");
        run(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", &sdk]).current_dir(folder));
    })
}

/// A module finds its packages from where it is: the program and its neighbours are copied beside a link to them.
fn place_modules(program: &Path, packages: &Path, folder: &Path) {
    let programs = program.parent().expect("a folder");
    for entry in fs::read_dir(programs).expect("the programs").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "mjs") {
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("the program's copy");
        }
    }
    let link = folder.join("node_modules");
    if !link.exists() {
        std::os::unix::fs::symlink(packages.join("node_modules"), link).expect("a link to the packages");
    }
}

/// Builds a package with dependencies of its own, and returns its program.
fn build(package: &Path) -> PathBuf {
    let target = own_target();
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(package.join("Cargo.toml"));
    run(command.arg("--target-dir").arg(&target));
    target.join("debug/sdk-programs")
}

/// Where packages outside the workspace are built.
#[must_use]
pub fn own_target() -> PathBuf {
    bin_dir().join("../sdk")
}

/// A folder of the user's cache that `install` has filled, now or earlier. Other tests wait meanwhile.
fn once(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let folder = cache().join(name);
    fs::create_dir_all(cache()).expect("a cache");
    let lock = File::create(cache().join(format!("{name}.lock"))).expect("a lock");
    lock.lock().expect("a lock of our own");
    if !folder.join("ready").exists() {
        install(&folder);
        fs::write(folder.join("ready"), "").expect("a mark");
    }
    folder
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"), PathBuf::from);
    base.join("iii/sdk")
}

fn run(command: &mut Command) {
    let answer = Answer::of(command);
    assert_eq!(answer.status, 0, "{command:?}: {answer:?}");
}
