//! What a machine can lack, and what can be killed: each with its error, and nothing left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_rig::{Feature, Rig, eventually, kill, shared_home, supported, wait_gone};

const PATIENCE: Duration = Duration::from_secs(120);

fn run(rig: &Rig) -> Result<Value, Value> {
    rig.trigger("sandbox::run", &json!({ "image": "python", "code": "print('ok')" }))
}

/// A kit with everything of the installed one but the named file.
fn kit_without(folder: &Path, missing: &str) {
    for entry in fs::read_dir(shared_home().join("lib/kit")).expect("the kit").flatten() {
        if entry.file_name() != missing {
            symlink(entry.path(), folder.join(entry.file_name())).expect("a link");
        }
    }
}

fn refused(rig: &Rig, words: &[&str]) {
    let error = run(rig).expect_err("cannot boot");
    let text = error.to_string();
    assert!(text.contains("S300"), "{error}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {error}");
    }
    let runs: Vec<_> =
        fs::read_dir(rig.home().join("run")).expect("run").flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(runs.is_empty(), "left behind: {runs:?}");
}

#[test]
fn a_qemu_that_is_no_file_is_named() {
    if !supported(Feature::SeparateProgram) {
        return;
    }
    let rig = Rig::builder().sandboxes().env("III_QEMU", "/no/such/qemu").start();
    refused(&rig, &["/no/such/qemu", "III_QEMU", "unset it"]);
}

#[test]
fn without_a_kernel_the_error_names_the_command() {
    let folder = tempfile::TempDir::new().expect("a folder");
    kit_without(folder.path(), "kernel");
    let rig = Rig::builder().sandboxes().kit(folder.path()).start();
    refused(&rig, &["kernel", "make kit"]);
}

#[test]
fn a_damaged_template_falls_back_to_a_cold_boot() {
    if !supported(Feature::Templates) {
        return;
    }
    let rig = Rig::builder().sandboxes().start();
    run(&rig).expect("a template is built");
    let templates = rig.home().join("templates").canonicalize().expect("templates");
    let mut damaged = 0;
    for entry in fs::read_dir(&templates).expect("templates").flatten() {
        let state = entry.path().join("state");
        if state.is_file() {
            let length = fs::metadata(&state).expect("state").len();
            fs::OpenOptions::new()
                .write(true)
                .open(&state)
                .and_then(|file| file.set_len(length / 2))
                .expect("cut short");
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no template in {}", templates.display());
    let answer = run(&rig).unwrap_or_else(|error| panic!("{error:#}\n{}", rig.log()));
    assert_eq!(answer["stdout"], "ok\n");
    assert!(rig.log().contains("booting without a template"), "{}", rig.log());
}

#[test]
fn a_killed_vm_is_reported_and_leaves_nothing() {
    for (what, victims) in [("guest's process", Rig::machines as fn(&Rig) -> _), ("supervisor", Rig::supervisors)] {
        let rig = Rig::builder().sandboxes().start();
        let created = rig.call("sandbox::create", &json!({ "image": "python" }));
        let victims = victims(&rig);
        let all = [rig.machines(), rig.supervisors()].concat();
        kill(victims.last().expect("a VM").pid, Signal::SIGKILL);
        assert!(wait_gone(&all, PATIENCE).is_empty(), "{what}: {:#?}", rig.family());
        let error = rig
            .trigger("sandbox::exec", &json!({ "sandbox_id": created["sandbox_id"], "argv": ["true"] }))
            .expect_err("the VM is gone");
        assert!(["S002", "S004"].contains(&error["code"].as_str().unwrap_or("")), "{what}: {error}");
        let clean = eventually(PATIENCE, || {
            let left = fs::read_dir(rig.home().join("run")).ok()?.flatten().any(|entry| entry.path().is_dir());
            (!left).then_some(())
        });
        assert!(clean.is_some(), "{what}: a run directory is left");
    }
}

#[test]
fn a_guest_that_ends_itself_is_told_as_what_it_did() {
    let rig = Rig::builder().sandboxes().start();
    let python = |code: &str| json!(["python3", "-c", code]);
    // `reboot(RB_AUTOBOOT)`, and a kernel that is made to panic: reboot(2), and the kernel's admin-guide/sysrq.rst.
    let restarts = python("import ctypes; ctypes.CDLL(None).reboot(0x01234567)");
    let panics = json!(["sh", "-c", "echo c > /proc/sysrq-trigger"]);
    for (argv, wanted) in [(restarts, "powered off"), (panics, "panicked")] {
        let created = rig.call("sandbox::create", &json!({ "image": "python", "memory_mb": 256 }));
        let id = created["sandbox_id"].clone();
        let error = rig.trigger("sandbox::exec", &json!({ "sandbox_id": id, "argv": argv })).expect_err("it is gone");
        assert_eq!(error["code"], "S004", "{error}");
        assert!(error.to_string().contains(wanted), "{argv}: {error}");
    }
    assert!(eventually(PATIENCE, || rig.supervisors().is_empty().then_some(())).is_some());
}

#[test]
fn a_driver_killed_at_any_moment_is_told_once_and_leaves_nothing() {
    let rig = Rig::builder().sandboxes().start();
    run(&rig).expect("image and template are there");
    let quiet = || rig.supervisors().is_empty().then_some(());
    assert!(eventually(PATIENCE, quiet).is_some());
    let begun = Instant::now();
    let created = rig.call("sandbox::create", &json!({ "image": "python", "memory_mb": 256 }));
    let start_takes = begun.elapsed();
    let _ = rig.call("sandbox::stop", &json!({ "sandbox_id": created["sandbox_id"], "wait": true }));
    let (mut refused, mut killed) = (0, 0);
    for step in 0..16 {
        let outcome = thread::scope(|scope| {
            let creating =
                scope.spawn(|| rig.trigger("sandbox::create", &json!({ "image": "python", "memory_mb": 256 })));
            // From before the process is there to after the guest has answered.
            thread::sleep(start_takes * step / 12);
            let victims = if step % 2 == 0 { rig.machines() } else { rig.supervisors() };
            for victim in &victims {
                kill(victim.pid, Signal::SIGKILL);
                killed += 1;
            }
            creating.join().expect("an answer")
        });
        match outcome {
            // It came up again, or was not killed at all; or it ends now, and is told as ended.
            Ok(created) => {
                let id = created["sandbox_id"].clone();
                if let Err(error) = rig.trigger("sandbox::exec", &json!({ "sandbox_id": id, "argv": ["true"] })) {
                    assert!(["S002", "S004"].contains(&error["code"].as_str().unwrap_or("")), "{error}");
                }
                let _ = rig.trigger("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }));
            }
            Err(error) => {
                assert_eq!(error["code"], "S300", "{error}");
                assert!(error.to_string().contains("signal 9") || error.to_string().contains("killed"), "{error}");
                refused += 1;
            }
        }
        assert!(eventually(PATIENCE, quiet).is_some(), "{:#?}", rig.family());
    }
    assert!(killed > 3 && rig.machines().is_empty(), "{killed} killed, {refused} refused");
    let clean = eventually(PATIENCE, || {
        let left = fs::read_dir(rig.home().join("run")).ok()?.flatten().any(|entry| entry.path().is_dir());
        (!left).then_some(())
    });
    assert!(clean.is_some(), "a run directory is left");
    assert_eq!(run(&rig).expect("nothing is spoilt")["stdout"], "ok\n");
}

#[test]
fn a_killed_engine_or_daemon_takes_its_vms_along() {
    for program in ["iii-engine", "iii-daemon sandboxes"] {
        let rig = Rig::builder().sandboxes().start();
        let _ = rig.call("sandbox::create", &json!({ "image": "python" }));
        let machines = [rig.machines(), rig.supervisors()].concat();
        assert!(machines.len() >= 2, "{machines:#?}");
        if program == "iii-engine" {
            let left = rig.kill_engine();
            assert!(left.is_empty(), "{left:#?}");
        } else {
            kill(rig.family_named(program).first().expect("the daemon").pid, Signal::SIGKILL);
            assert!(wait_gone(&machines, PATIENCE).is_empty(), "{:#?}", rig.family());
            let back = eventually(PATIENCE, || run(&rig).ok());
            assert!(back.is_some(), "{}", rig.log());
            // That of the run just now goes a moment after its answer.
            let clean = eventually(PATIENCE, || {
                let left = fs::read_dir(rig.home().join("run")).ok()?.flatten().any(|entry| entry.path().is_dir());
                (!left).then_some(())
            });
            assert!(clean.is_some(), "the dead daemon's run directory is left");
        }
    }
}
