//! Workers: from a folder of source to answers, and from an edit to new answers.

use std::time::Duration;

use serde_json::{Value, json};
use test_rig::{Rig, eventually};

const PATIENCE: Duration = Duration::from_secs(280);

/// A worker without dependencies to install.
const BARE_WORKER: &str = include_str!("guest/bare_worker.py");
const WEB_SOCKET: &str = include_str!("guest/ws.py");

fn manifest(name: &str, install: &str, start: &str) -> String {
    format!(
        "name: {name}\nruntime:\n  base_image: python\nscripts:\n  install: \"{install}\"\n  start: {start}\nresources:\n  cpus: 1\n  memory: 512\n"
    )
}

fn bare_rig() -> Rig {
    Rig::builder()
        .file("bare/iii.worker.yaml", &manifest("bare", "", "python3 worker.py"))
        .file("bare/worker.py", BARE_WORKER)
        .file("bare/ws.py", WEB_SOCKET)
        .file("bare/answer.txt", "first")
        .start()
}

fn add(rig: &Rig, folder: &str) -> Result<Value, Value> {
    let path = rig.project().join(folder);
    rig.trigger("worker::add", &json!({ "source": { "kind": "local", "path": path } }))
}

fn details(error: &Value) -> Value {
    serde_json::from_str(error["message"].as_str().unwrap_or("null")).unwrap_or(Value::Null)
}

fn boot_id(rig: &Rig, worker: &str) -> String {
    rig.iii(&[
        "worker",
        "exec",
        "--port",
        &rig.port().to_string(),
        worker,
        "--",
        "cat",
        "/proc/sys/kernel/random/boot_id",
    ])
    .stdout
}

#[test]
fn the_published_python_sdk_answers_from_inside_a_guest() {
    let greeter = |file: &str| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/greeter/").to_owned() + file;
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let rig = Rig::builder()
        .file("greeter/iii.worker.yaml", &greeter("iii.worker.yaml"))
        .file("greeter/greeter.py", &greeter("greeter.py"))
        .start();
    let added = add(&rig, "greeter").unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(added["name"], "greeter");
    rig.wait_for_worker("greeter");
    let answer = rig.call("greeter::hello", &json!({ "name": "Ada" }));
    assert!(answer["message"].as_str().unwrap_or("").contains("Ada"), "{answer}");
    // By release they may be the same; no two running kernels have the same boot id.
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    assert_ne!(boot_id(&rig, "greeter").trim(), host.trim(), "the guest's kernel, not the host's: {answer}");
}

#[test]
fn an_edit_gives_the_new_answer_without_a_reboot() {
    let rig = bare_rig();
    let added = add(&rig, "bare").unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(added["awaited_ready"], true, "{added}");
    assert_eq!(rig.call("bare::answer", &json!({}))["answer"], "first");
    let boot = boot_id(&rig, "bare");
    assert_eq!(boot.trim().len(), 36, "{boot}");
    rig.write("bare/answer.txt", "second");
    let answer = eventually(PATIENCE, || {
        rig.trigger("bare::answer", &json!({})).ok().filter(|answer| answer["answer"] == "second")
    });
    assert!(answer.is_some(), "the edit never arrived\n{}", rig.log());
    assert_eq!(boot_id(&rig, "bare"), boot, "the VM was rebooted");
}

#[test]
fn exec_passes_streams_and_status_through() {
    let rig = bare_rig();
    add(&rig, "bare").unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    let port = rig.port().to_string();
    let answer =
        rig.iii(&["worker", "exec", "--port", &port, "bare", "--", "sh", "-c", "uname -s; echo oops >&2; exit 3"]);
    assert_eq!((answer.status, answer.stdout.as_str()), (3, "Linux\n"), "{answer:?}");
    assert!(answer.stderr.contains("oops"), "{answer:?}");
    let iii = rig.iii_command(&["worker", "exec", "--port", &port, "bare", "--"]);
    let (program, arguments) = (iii.get_program().to_owned(), iii.get_args().map(ToOwned::to_owned));
    let words: Vec<String> =
        std::iter::once(program).chain(arguments).map(|word| word.to_string_lossy().into_owned()).collect();
    let shell = |script: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdin(std::process::Stdio::null()).env("III_HOME", rig.home());
        command.current_dir(rig.project());
        test_rig::Answer::of(&mut command)
    };
    let exec = words.join(" ");
    // Who reads no more ends the program.
    let answer = shell(&format!("{exec} yes | head -n 1"));
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "y\n"), "{answer:?}");
    let gone = eventually(PATIENCE, || {
        let answer = rig.iii(&["worker", "exec", "--port", &port, "bare", "--", "pgrep", "-x", "yes"]);
        (answer.status != 0).then_some(())
    });
    assert!(gone.is_some(), "`yes` runs on");
    // Input of any length, and a signal that does not wait behind it.
    let answer = shell(&format!("head -c 5000000 /dev/zero | {exec} wc -c"));
    assert_eq!(answer.stdout.trim(), "5000000", "{answer:?}");
    let answer = shell(&format!(
        "yes | {exec} sh -c 'trap \"exit 9\" INT; echo up; while :; do sleep 0.1; done' > up.txt & \
         pid=$!; while ! grep -q up up.txt; do sleep 0.1; done; sleep 1; kill -INT $pid; wait $pid"
    ));
    assert_eq!(answer.status, 9, "{answer:?}");
    let answer = rig.iii(&["worker", "exec", "--port", &port, "bare", "--", "no-such-program"]);
    assert_eq!(answer.status, 127, "{answer:?}");
    let answer = rig.iii(&["worker", "exec", "--port", &port, "--timeout", "500ms", "bare", "--", "sleep", "60"]);
    assert_eq!(answer.status, 124, "{answer:?}");
}

#[test]
fn from_a_terminal_exec_is_an_interactive_shell() {
    let rig = bare_rig();
    add(&rig, "bare").unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    let iii = rig.iii_command(&["worker", "exec", "--port", &rig.port().to_string(), "bare", "--", "sh"]);
    let words: Vec<_> = std::iter::once(iii.get_program()).chain(iii.get_args()).collect();
    let line = words.join(std::ffi::OsStr::new(" "));
    // `script` gives the command a terminal of its own, and types what it reads.
    let mut typed = std::process::Command::new("sh");
    typed.args(["-c", "printf 'tty; echo $((40 + 2))\\nexit 5\\n' | script -qec \"$1\" /dev/null", "sh"]);
    let answer = test_rig::Answer::of(typed.arg(line).current_dir(rig.project()).env("III_HOME", rig.home()));
    assert_eq!(answer.status, 5, "{answer:?}");
    for expected in ["/dev/pts/", "42\r\n", "# "] {
        assert!(answer.stdout.contains(expected), "{expected:?}: {answer:?}");
    }
}

#[test]
fn a_worker_survives_the_worker_daemon_and_a_crash_of_its_own() {
    let rig = bare_rig();
    add(&rig, "bare").unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    let daemon = rig.family_named("iii-daemon workers").into_iter().next().expect("the worker daemon");
    test_rig::kill(daemon.pid, nix::sys::signal::Signal::SIGKILL);
    let gone = test_rig::wait_gone(std::slice::from_ref(&daemon), Duration::from_secs(30));
    assert!(gone.is_empty());
    let answered = eventually(PATIENCE, || rig.trigger("bare::answer", &json!({})).ok());
    assert!(answered.is_some(), "the worker did not come back\n{}", rig.log());
    let port = rig.port().to_string();
    let _ = rig.iii(&["worker", "exec", "--port", &port, "bare", "--", "sh", "-c", "kill -9 $(cat /tmp/worker.pid)"]);
    let answered = eventually(PATIENCE, || rig.trigger("bare::answer", &json!({})).ok());
    assert!(answered.is_some(), "the process did not come back\n{}", rig.log());
    // Stopped, started and removed by hand.
    let stopped = rig.call("worker::stop", &json!({ "name": "bare", "yes": true }));
    assert_eq!(stopped["stopped"], true);
    assert!(rig.trigger("bare::answer", &json!({})).is_err());
    let _ = rig.call("worker::start", &json!({ "name": "bare" }));
    let answered = eventually(PATIENCE, || rig.trigger("bare::answer", &json!({})).ok());
    assert!(answered.is_some(), "the worker did not start again\n{}", rig.log());
    let removed = rig.call("worker::remove", &json!({ "names": ["bare"], "yes": true }));
    assert_eq!(removed["removed"], json!(["bare"]));
    let left = eventually(PATIENCE, || rig.supervisors().is_empty().then_some(()));
    assert!(left.is_some(), "{:#?}", rig.family());
}

#[test]
fn a_manifest_with_typos_is_refused_whole_and_installs_nothing() {
    let rig = Rig::builder().file("typo/iii.worker.yaml", "name: typo\nruntimee: {}\nscrpits: {}\n").start();
    let before = std::fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml");
    let error = add(&rig, "typo").expect_err("must be refused");
    let message = error.to_string();
    assert!(message.contains("runtimee") && message.contains("scrpits"), "{error}");
    assert_eq!(std::fs::read_to_string(rig.project().join("config.yaml")).expect("config.yaml"), before);
    let kept: Vec<_> = std::fs::read_dir(rig.home().join("workers")).expect("workers").flatten().collect();
    assert!(kept.is_empty(), "{kept:?}");
    let verdict = rig.call("worker::validate", &json!({ "path": rig.project().join("typo") }));
    assert_eq!(verdict["valid"], false);
    assert_eq!(verdict["unknown_keys"], json!(["runtimee", "scrpits"]));
}

#[test]
fn an_install_that_fails_says_so_with_its_last_words() {
    let rig = Rig::builder()
        .file("broken/iii.worker.yaml", &manifest("broken", "echo no such wheel >&2; exit 7", "python3 worker.py"))
        .start();
    let error = add(&rig, "broken").expect_err("the install fails");
    let text = details(&error).to_string();
    assert!(text.contains('7') && text.contains("no such wheel"), "{error}");
}

#[test]
fn a_start_command_that_exits_at_once_says_so() {
    let rig = Rig::builder()
        .file("hasty/iii.worker.yaml", &manifest("hasty", "", "\"echo gone already >&2; exit 9\""))
        .start();
    let error = add(&rig, "hasty").expect_err("the command exits");
    let text = details(&error).to_string();
    assert!(text.contains('9') && text.contains("gone already"), "{error}");
}

#[test]
fn a_worker_that_never_connects_is_not_called_ready() {
    let rig = Rig::builder().file("mute/iii.worker.yaml", &manifest("mute", "", "sleep 1000")).start();
    let path = rig.project().join("mute");
    let port = rig.port().to_string();
    let added =
        rig.call("worker::add", &json!({ "source": { "kind": "local", "path": path }, "ready_timeout_ms": 500 }));
    assert_eq!(added["awaited_ready"], false, "{added}");
    let status = rig.call("worker::status", &json!({ "name": "mute" }));
    assert_eq!((&status["status"], &status["running"]), (&json!("starting"), &json!(true)), "{status}");
    assert!(status["hint"].as_str().unwrap_or("").contains("connect"), "{status}");
    let shown = rig.iii(&["worker", "status", "--port", &port, "--no-watch", "mute"]);
    assert!(shown.stdout.contains("mute: starting"), "{shown:?}");
}
