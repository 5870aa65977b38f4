//! One engine with its daemons, in a home and a project folder of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::free_port::free_port;
use crate::processes::{Process, descendants, eventually, kill, wait_gone};
use crate::view::{KvmDevice, View};

/// How long anything may take on a loaded two-core machine without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running engine; ends with all it started when dropped.
pub struct Rig {
    engine: Child,
    view: View,
    port: u16,
    bin: PathBuf,
    home: TempDir,
    project: TempDir,
    env: BTreeMap<String, String>,
}

/// What is to be different from a plain engine.
#[derive(Default)]
pub struct RigBuilder {
    workers: String,
    env: BTreeMap<String, String>,
    files: Vec<(String, String)>,
    kit: Option<PathBuf>,
    own: Vec<&'static str>,
    small_disks: Vec<(&'static str, &'static str)>,
    kvm: Option<KvmDevice>,
}

/// What a program said.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl RigBuilder {
    /// YAML list items that go under `workers:` besides the port.
    #[must_use]
    pub fn workers(mut self, yaml: &str) -> Self {
        self.workers.push_str(yaml);
        self
    }

    /// `iii-sandbox` with both base images allowed. No VM waits to be asked for, so that VMs can be counted.
    #[must_use]
    pub fn sandboxes(self) -> Self {
        self.sandboxes_with("auto_install: true")
    }

    /// As [`Self::sandboxes`], with one more line of its block.
    #[must_use]
    pub fn sandboxes_with(self, line: &str) -> Self {
        let pool = if line.starts_with("warm_pool_mb") { "" } else { "      warm_pool_mb: 0\n" };
        let images = "      image_allowlist: [python, node]\n";
        self.workers(&format!("  - name: iii-sandbox\n    config:\n{images}{pool}      {line}\n"))
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A file of the project, by its relative path.
    #[must_use]
    pub fn file(mut self, path: &str, content: &str) -> Self {
        self.files.push((path.to_owned(), content.to_owned()));
        self
    }

    /// Another kit than the installed one.
    #[must_use]
    pub fn kit(mut self, folder: &Path) -> Self {
        self.kit = Some(folder.to_owned());
        self
    }

    /// A folder of the home, `images` or `templates`, that is not shared with other rigs.
    #[must_use]
    pub fn own(mut self, folder: &'static str) -> Self {
        self.own.push(folder);
        self
    }

    /// A folder of the home that is a disk of its own, of `size` (as `mount` writes it: `8m`).
    #[must_use]
    pub fn small_disk(mut self, folder: &'static str, size: &'static str) -> Self {
        self.small_disks.push((folder, size));
        self.own(folder)
    }

    /// Another `/dev/kvm` than this machine's, if it has one.
    #[must_use]
    pub fn kvm(mut self, device: KvmDevice) -> Self {
        self.kvm = Some(device);
        self.own("templates")
    }

    /// Starts the engine without daemons.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_engine_only(self) -> Rig {
        let rig = self.env("IIIWORKER_DISABLE_BUILTIN_DAEMONS", "1").spawn();
        rig.wait_for_worker("iii-engine-functions");
        rig
    }

    /// Starts the engine and waits until its daemons have registered.
    ///
    /// # Panics
    /// When something does not start, or the kit or the images are missing.
    #[must_use]
    pub fn start(self) -> Rig {
        assert_eq!(missing(), None);
        let sandboxes = self.workers.contains("iii-sandbox");
        let rig = self.spawn();
        for worker in ["iii-worker-ops", "iii-sandbox"] {
            if worker == "iii-worker-ops" || sandboxes {
                rig.wait_for_worker(worker);
            }
        }
        rig
    }

    /// As [`Self::start`], where the sandbox daemon is not to come up.
    ///
    /// # Panics
    /// When the engine or the worker daemon does not start.
    #[must_use]
    pub fn start_without_sandbox_daemon(self) -> Rig {
        assert_eq!(missing(), None);
        let rig = self.spawn();
        rig.wait_for_worker("iii-worker-ops");
        rig
    }

    fn spawn(self) -> Rig {
        let home = TempDir::with_prefix("iii-home-").expect("a temporary folder for the home");
        let project = TempDir::with_prefix("iii-project-").expect("a temporary folder for the project");
        share_home(home.path(), self.kit.as_deref(), &self.own);
        let view = self.view(home.path());
        let port = free_port();
        let config = format!(
            "workers:\n  - name: iii-worker-manager\n    config:\n      host: 127.0.0.1\n      port: {port}\n{}",
            self.workers
        );
        fs::write(project.path().join("config.yaml"), config).expect("config.yaml");
        for (path, content) in &self.files {
            write_below(project.path(), path, content);
        }
        let bin = bin_dir();
        let engine = run_engine(&view, &bin, &home, &project, &self.env);
        Rig { engine, view, port, bin, home, project, env: self.env }
    }

    fn view(&self, home: &Path) -> View {
        let mut view = View::default();
        for (folder, size) in &self.small_disks {
            view.small_disk(&home.join(folder), size);
        }
        if let Some(device) = self.kvm {
            let dev = home.join("dev");
            fs::create_dir(&dev).expect("a folder");
            view.kvm(device, &dev);
        }
        view
    }
}

fn runs_a_guest(process: &Process) -> bool {
    let is_qemu = || process.command.contains("qemu-system") && process.name != "iii-nursery";
    process.command.contains("iii-vm --libkrun") || is_qemu()
}

impl Rig {
    #[must_use]
    pub fn builder() -> RigBuilder {
        RigBuilder::default()
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    #[must_use]
    pub fn project(&self) -> &Path {
        self.project.path()
    }

    #[must_use]
    pub fn engine_pid(&self) -> i32 {
        i32::try_from(self.engine.id()).expect("a pid fits")
    }

    /// Everything the engine has started, directly or not.
    #[must_use]
    pub fn family(&self) -> Vec<Process> {
        descendants(self.engine_pid())
    }

    /// Those of the family whose command line contains `text`.
    #[must_use]
    pub fn family_named(&self, text: &str) -> Vec<Process> {
        self.family().into_iter().filter(|process| process.command.contains(text)).collect()
    }

    /// The processes that look after a VM each.
    #[must_use]
    pub fn supervisors(&self) -> Vec<Process> {
        self.family_named("iii-vm").into_iter().filter(|process| !runs_a_guest(process)).collect()
    }

    /// The processes in which guests run: QEMU's, or libkrun's.
    #[must_use]
    pub fn machines(&self) -> Vec<Process> {
        self.family().into_iter().filter(runs_a_guest).collect()
    }

    /// The engine's and its daemons' log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.project().join("engine.log")).unwrap_or_default()
    }

    pub fn write(&self, path: &str, content: &str) {
        write_below(self.project(), path, content);
    }

    /// A command for `iii`, in the project's folder.
    #[must_use]
    pub fn iii_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("iii"));
        command.args(arguments);
        self.as_a_user(command)
    }

    /// As [`Rig::iii`], on the machine as the engine sees it.
    #[must_use]
    pub fn iii_inside(&self, arguments: &[&str]) -> Answer {
        let mut command = View::command_inside(self.engine_pid(), &self.bin.join("iii"));
        command.args(arguments);
        Answer::of(&mut self.as_a_user(command))
    }

    fn as_a_user(&self, mut command: Command) -> Command {
        command.current_dir(self.project()).env("III_HOME", self.home()).env("III_BIN_DIR", &self.bin);
        command.envs(&self.env).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// A folder of the home, as the engine sees it.
    #[must_use]
    pub fn inside(&self, folder: &str) -> PathBuf {
        let home = self.home().strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.engine_pid().to_string()).join("root").join(home).join(folder)
    }

    /// Runs `iii worker ...` or another command that takes `--port`.
    #[must_use]
    pub fn iii(&self, arguments: &[&str]) -> Answer {
        Answer::of(&mut self.iii_command(arguments))
    }

    /// Calls a function; `Err` is the error body.
    ///
    /// # Errors
    /// What the function, or the engine, answered instead of a result.
    pub fn trigger(&self, function: &str, payload: &Value) -> Result<Value, Value> {
        let port = self.port.to_string();
        let answer =
            self.iii(&["trigger", function, "--port", &port, "--timeout-ms", "280000", "--json", &payload.to_string()]);
        if answer.status == 0 {
            return Ok(if answer.stdout.trim().is_empty() { Value::Null } else { parse(&answer.stdout) });
        }
        Err(match answer.stderr.split_once("Error: ") {
            Some((_, body)) => {
                serde_json::from_str(body.trim()).unwrap_or_else(|_| Value::String(answer.stderr.clone()))
            }
            None => Value::String(answer.stderr),
        })
    }

    /// As [`Rig::trigger`], for a call that must succeed.
    #[must_use]
    pub fn call(&self, function: &str, payload: &Value) -> Value {
        self.trigger(function, payload)
            .unwrap_or_else(|error| panic!("{function} {payload} failed: {error:#}\nlog:\n{}", self.log()))
    }

    /// Waits until the engine lists a worker of this name.
    pub fn wait_for_worker(&self, name: &str) {
        let seen =
            eventually(PATIENCE, || self.trigger("engine::workers::info", &serde_json::json!({ "name": name })).ok());
        assert!(seen.is_some(), "worker {name} did not register\nlog:\n{}", self.log());
    }

    /// Sends SIGTERM, waits, and returns the exit status and who of the family is left.
    #[must_use]
    pub fn stop(mut self) -> (Option<i32>, Vec<Process>) {
        let family = self.family();
        kill(self.engine_pid(), Signal::SIGTERM);
        let status = self.engine.wait().ok().and_then(|status| status.code());
        (status, wait_gone(&family, Duration::from_secs(30)))
    }

    /// Sends SIGKILL to the engine, whatever it is doing, and starts it anew in the same home and project. Does not wait
    /// until it listens.
    pub fn kill_and_restart_engine(&mut self) {
        kill(self.engine_pid(), Signal::SIGKILL);
        let _ = self.engine.wait();
        self.engine = run_engine(&self.view, &self.bin, &self.home, &self.project, &self.env);
    }

    /// Sends SIGKILL to the engine and returns who of the family is left in the end.
    #[must_use]
    pub fn kill_engine(mut self) -> Vec<Process> {
        let family = self.family();
        kill(self.engine_pid(), Signal::SIGKILL);
        let _ = self.engine.wait();
        wait_gone(&family, Duration::from_secs(30))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let family = self.family();
        kill(self.engine_pid(), Signal::SIGTERM);
        let ended = eventually(Duration::from_secs(30), || self.engine.try_wait().ok().flatten());
        if ended.is_none() {
            let _ = self.engine.kill();
            let _ = self.engine.wait();
        }
        let left = wait_gone(&family, Duration::from_secs(30));
        if thread::panicking() {
            eprintln!("engine log:\n{}", self.log());
        } else {
            assert!(left.is_empty(), "left running: {left:#?}");
        }
    }
}

impl Answer {
    /// Runs `command` to its end.
    #[must_use]
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Kit, base images, image store and templates that all rigs of this machine share.
#[must_use]
pub fn shared_home() -> PathBuf {
    let installed = std::env::var_os("III_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".iii"), PathBuf::from);
    let shared = bin_dir().join("../test-home");
    fs::create_dir_all(&shared).expect("the shared test home");
    let _ = symlink(installed.join("lib"), shared.join("lib"));
    for folder in ["images", "templates"] {
        fs::create_dir_all(shared.join(folder)).expect("a shared folder");
    }
    shared.canonicalize().expect("the shared test home")
}

/// What a guest test needs and this machine lacks; `None` when all is there.
fn missing() -> Option<String> {
    let lib = shared_home().join("lib");
    for (path, hint) in [("kit/kit.json", "make kit"), ("images/python/index.json", "make images")] {
        if !lib.join(path).exists() {
            return Some(format!("{} is missing: run `{hint}`", lib.join(path).display()));
        }
    }
    None
}

fn share_home(home: &Path, kit: Option<&Path>, own: &[&str]) {
    let shared = shared_home();
    for folder in own {
        fs::create_dir_all(home.join(folder)).expect("a folder of the home");
    }
    for folder in ["images", "templates"].iter().filter(|folder| !own.contains(folder)) {
        symlink(shared.join(folder), home.join(folder)).expect("a link to a shared folder");
    }
    match kit {
        None => symlink(shared.join("lib"), home.join("lib")).expect("a link to the kit"),
        Some(kit) => {
            fs::create_dir(home.join("lib")).expect("lib");
            symlink(kit, home.join("lib/kit")).expect("a link to the kit");
            symlink(shared.join("lib/images"), home.join("lib/images")).expect("a link to the images");
        }
    }
}

fn run_engine(view: &View, bin: &Path, home: &TempDir, project: &TempDir, env: &BTreeMap<String, String>) -> Child {
    let log = File::options().create(true).append(true).open(project.path().join("engine.log")).expect("engine.log");
    let mut engine = view.command(&bin.join("iii-engine"));
    engine.args(["--config", "config.yaml", "--no-update-check"]).current_dir(project.path());
    engine.env("III_HOME", home.path()).env("III_BIN_DIR", bin).envs(env).stdin(Stdio::null());
    engine.stdout(log.try_clone().expect("a second descriptor of the log")).stderr(log);
    engine.spawn().expect("iii-engine starts")
}

/// Where the programs under test are.
///
/// # Panics
/// When this program does not know where it is.
#[must_use]
pub fn bin_dir() -> PathBuf {
    std::env::var_os("III_BIN_DIR").map_or_else(
        || {
            // tests run as target/<profile>/deps/<test>
            let test = std::env::current_exe().expect("a path of this program");
            test.parent().and_then(Path::parent).expect("a build folder").to_owned()
        },
        PathBuf::from,
    )
}

fn write_below(folder: &Path, path: &str, content: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("the parent folder");
    fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}
