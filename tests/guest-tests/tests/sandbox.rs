//! Sandboxes: what they run, what they keep apart, and that they leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use test_rig::{Rig, eventually, wait_gone};

fn create(rig: &Rig, request: &Value) -> String {
    let answer = rig.call("sandbox::create", request);
    answer["sandbox_id"].as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
}

fn exec(rig: &Rig, id: &str, argv: &[&str]) -> Value {
    rig.call("sandbox::exec", &json!({ "sandbox_id": id, "argv": argv }))
}

fn code(error: &Value) -> &str {
    error["code"].as_str().unwrap_or("no code")
}

#[test]
fn one_call_runs_python_and_another_node() {
    let rig = Rig::builder().sandboxes().start();
    let python = rig.call("sandbox::run", &json!({ "image": "python", "code": "print(2+2)" }));
    assert_eq!(python["stdout"], "4\n", "{python}");
    assert_eq!(python["exit_code"], 0, "{python}");
    let node = rig.call("sandbox::run", &json!({ "image": "node", "code": "console.log(process.platform)" }));
    assert_eq!(node["stdout"], "linux\n", "{node}");
    let left = rig.call("sandbox::list", &json!({}));
    assert_eq!(left["sandboxes"], json!([]));
}

#[test]
fn a_file_written_into_a_sandbox_runs_there() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    let written = rig.call(
        "sandbox::fs::write",
        &json!({ "sandbox_id": id, "path": "/data/deep/hello.py", "content": "print('from a file')", "parents": true }),
    );
    assert_eq!(written["bytes_written"], 20, "{written}");
    assert_eq!(exec(&rig, &id, &["python3", "/data/deep/hello.py"])["stdout"], "from a file\n");
    let read = rig.call("sandbox::fs::read", &json!({ "sandbox_id": id, "path": "/data/deep/hello.py" }));
    assert_eq!(read["body"], "print('from a file')");
    let listed = rig.call("sandbox::fs::ls", &json!({ "sandbox_id": id, "path": "/data/deep" }));
    assert_eq!(listed["entries"][0]["name"], "hello.py", "{listed}");
    let stopped = rig.call("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }));
    assert_eq!(stopped["stopped"], true);
    let gone =
        rig.trigger("sandbox::exec", &json!({ "sandbox_id": id, "argv": ["true"] })).expect_err("a stopped sandbox");
    assert!(["S002", "S004"].contains(&code(&gone)), "{gone}");
}

#[test]
fn sandboxes_of_one_image_do_not_see_each_others_writes() {
    let rig = Rig::builder().sandboxes().start();
    let first = create(&rig, &json!({ "image": "python" }));
    let store_before = image_files(&rig);
    assert!(!store_before.is_empty());
    let second = create(&rig, &json!({ "image": "python" }));
    let wrote = exec(&rig, &first, &["sh", "-c", "echo mine > /etc/a && rm /etc/debian_version && cat /etc/a"]);
    assert_eq!(wrote["stdout"], "mine\n", "{wrote}");
    let look = ["sh", "-c", "cat /etc/a; cat /etc/debian_version"];
    let seen = exec(&rig, &second, &look);
    assert!(seen["stderr"].as_str().unwrap_or("").contains("/etc/a"), "{seen}");
    assert!(seen["stdout"].as_str().unwrap_or("").starts_with("12."), "{seen}");
    for id in [&first, &second] {
        let _ = rig.call("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }));
    }
    let third = create(&rig, &json!({ "image": "python" }));
    assert_eq!(exec(&rig, &third, &look)["stdout"], seen["stdout"], "a later sandbox sees the pristine image");
    assert_eq!(image_files(&rig), store_before, "the cached image is unchanged");
}

/// Path, length and digest of the data of each image in the store.
fn image_files(rig: &Rig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![rig.home().join("images")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "erofs") {
                // Content comes first, then a hole up to the size of the guest's disk: as much is read as is allocated.
                let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).expect("metadata"));
                let output = std::process::Command::new("sh")
                    .args(["-c", "head -c $(($2 * 512)) \"$1\" | sha256sum", "sh"])
                    .arg(&path)
                    .arg(blocks.to_string())
                    .output()
                    .expect("sha256sum");
                found.push((path.display().to_string(), String::from_utf8_lossy(&output.stdout).into_owned()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn exit_statuses_are_those_of_a_shell() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    for (argv, status) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -9 $$"], 137),
    ] {
        let answer = exec(&rig, &id, argv);
        assert_eq!(answer["exit_code"], status, "{argv:?}: {answer}");
        assert_eq!(answer["success"], status == 0, "{argv:?}: {answer}");
    }
}

#[test]
fn a_deadline_ends_the_command_and_keeps_its_output() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    let answer = rig.call(
        "sandbox::exec",
        &json!({ "sandbox_id": id, "argv": ["sh", "-c", "echo early; sleep 600"], "timeout_ms": 8000 }),
    );
    assert_eq!(answer["timed_out"], true, "{answer}");
    assert_eq!(answer["stdout"], "early\n", "{answer}");
    let processes = exec(&rig, &id, &["sh", "-c", "cat /proc/[0-9]*/comm"]);
    assert!(!processes["stdout"].as_str().unwrap_or("").contains("sleep"), "{processes}");
}

#[test]
fn clones_of_one_template_are_different_machines() {
    let rig = Rig::builder().sandboxes().start();
    let identity = ["sh", "-c", "cat /proc/sys/kernel/random/uuid /etc/machine-id; hostname; date +%s"];
    let mut seen: [BTreeSet<String>; 3] = Default::default();
    for _ in 0..4 {
        let id = create(&rig, &json!({ "image": "python" }));
        let before = unix_seconds();
        let answer = exec(&rig, &id, &identity);
        let after = unix_seconds();
        let lines: Vec<&str> = answer["stdout"].as_str().expect("text").lines().collect();
        for (set, line) in seen.iter_mut().zip(&lines) {
            set.insert((*line).to_owned());
        }
        let clock: u64 = lines[3].parse().expect("seconds");
        assert!((before.saturating_sub(1)..=after + 1).contains(&clock), "guest clock {clock}, host {before}..{after}");
    }
    for set in seen {
        assert_eq!(set.len(), 4, "four clones, four values: {set:?}");
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

#[test]
fn without_network_no_packet_leaves_but_loopback_works() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    let script = "import socket,threading\n\
        s=socket.create_server(('127.0.0.1',0))\n\
        c=socket.create_connection(s.getsockname(),2); print('loopback')\n\
        try: socket.create_connection(('100.96.0.1',80),2); print('out')\n\
        except OSError: print('closed')\n";
    let answer = exec(&rig, &id, &["python3", "-c", script]);
    assert_eq!(answer["stdout"], "loopback\nclosed\n", "{answer}");
}

#[test]
fn thirty_sandboxes_at_once_all_answer_and_leave_nothing() {
    let rig = Rig::builder().sandboxes().start();
    // The template exists from here on; thirty builds of it are not what this is about.
    let _ = rig.call("sandbox::run", &json!({ "image": "python", "code": "print(1)" }));
    // Its VM goes a moment after its answer.
    let _ = eventually(Duration::from_secs(60), || rig.supervisors().is_empty().then_some(()));
    let before = rig.supervisors().len();
    let ids: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = (0..30)
            .map(|number| {
                let rig = &rig;
                scope.spawn(move || {
                    let id = create(rig, &json!({ "image": "python", "memory_mb": 256 }));
                    let answer = exec(rig, &id, &["sh", "-c", &format!("echo {number}")]);
                    assert_eq!(answer["stdout"], format!("{number}\n"), "{answer}");
                    id
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("a sandbox")).collect()
    });
    let supervisors = rig.supervisors();
    assert_eq!(supervisors.len() - before, 30);
    let machines = rig.machines();
    for id in &ids {
        let _ = rig.call("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }));
    }
    let left = wait_gone(&[supervisors, machines].concat(), Duration::from_secs(60));
    assert!(left.is_empty(), "left running: {left:#?}");
    let dirs: Vec<_> =
        fs::read_dir(rig.home().join("run")).expect("run").flatten().filter(|e| e.path().is_dir()).collect();
    assert!(dirs.is_empty(), "left on disk: {dirs:?}");
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(&rig.home().display().to_string()), "left mounted: {mounts}");
}

#[test]
fn bad_requests_are_refused_by_code_and_value() {
    let rig = Rig::builder().sandboxes().start();
    for (function, request, wanted, named) in [
        ("sandbox::create", json!({ "image": "nope" }), "S100", "nope"),
        ("sandbox::create", json!({ "image": "python", "cpus": 0 }), "S400", "0"),
        ("sandbox::create", json!({ "image": "python", "env": ["NOVALUE"] }), "S001", "NOVALUE"),
        ("sandbox::exec", json!({ "sandbox_id": "not-a-uuid", "cmd": "true" }), "S001", "not-a-uuid"),
        ("sandbox::stop", json!({ "sandbox_id": "7d9a9f0e-5a83-4d2c-9a44-6a2f0f6a7c11" }), "S002", "7d9a9f0e"),
        ("sandbox::run", json!({ "code": "1" }), "S001", "image"),
    ] {
        let error = rig.trigger(function, &request).expect_err("must be refused");
        assert_eq!(code(&error), wanted, "{function} {request}: {error}");
        assert!(error["message"].as_str().unwrap_or("").contains(named), "{function} {request}: {error}");
    }
}

#[test]
fn a_command_does_not_wait_for_the_end_of_our_standard_input() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    let port = rig.port().to_string();
    let mut command = rig.iii_command(&["worker", "sandbox", "exec", "--port", &port, &id, "--", "echo", "hello"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("iii starts");
    // Held open until the command has ended.
    let _stdin = child.stdin.take();
    let status = eventually(Duration::from_secs(60), || child.try_wait().ok().flatten());
    let _ = child.kill();
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    let piped = rig
        .iii_command(&["worker", "sandbox", "exec", "--port", &port, &id, "--", "sh", "-c", "wc -c; exit 4"])
        .stdin(std::fs::File::open("/proc/self/exe").expect("a file"))
        .output()
        .expect("iii starts");
    let length = fs::metadata("/proc/self/exe").expect("a file").len();
    assert_eq!((String::from_utf8_lossy(&piped.stdout).trim(), piped.status.code()), (&*length.to_string(), Some(4)));
}

#[test]
fn a_large_folder_is_listed_and_the_sandbox_lives_on() {
    let rig = Rig::builder().sandboxes().start();
    let id = create(&rig, &json!({ "image": "python" }));
    let make = "import os\nos.mkdir('/many')\nfor n in range(12000): open(f'/many/{n:05}-' + 'n' * 90, 'w')";
    let made = exec(&rig, &id, &["python3", "-c", make]);
    assert_eq!(made["exit_code"], 0, "{made}");
    let listed = rig.call("sandbox::fs::ls", &json!({ "sandbox_id": id, "path": "/many" }));
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(12_000));
    assert_eq!(exec(&rig, &id, &["echo", "alive"])["stdout"], "alive\n");
}

#[test]
fn programs_are_born_in_a_group_whose_memory_is_limited() {
    let rig = Rig::builder().sandboxes().start();
    let created = rig.call("sandbox::create", &json!({ "image": "python", "memory_mb": 256 }));
    let script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/worker/memory.max";
    let exec = json!({ "sandbox_id": created["sandbox_id"], "argv": ["sh", "-c", script] });
    let said = rig.call("sandbox::exec", &exec)["stdout"].as_str().expect("text").to_owned();
    let (group, limit) = said.split_once('\n').expect("two lines");
    assert_eq!(group, "0::/worker");
    let limit: u64 = limit.trim().parse().expect("a number of bytes, not `max`");
    assert!(limit < 256 * 1024 * 1024, "{limit}");
}
