//! Machines without `/dev/kvm`, and with one that runs nothing: VMs are emulated, and the reason is told.

use serde_json::{Value, json};
use test_rig::{KvmDevice, Rig};

fn emulated_because(device: KvmDevice, reason: &str) {
    let rig = Rig::builder().sandboxes().env("III_DRIVER", "auto").env("III_ACCEL", "auto").kvm(device).start();
    let port = rig.port().to_string();
    let doctor = rig.iii_inside(&["doctor", "--json", "--port", &port]);
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap_or_else(|error| panic!("{error}: {doctor:?}"));
    let findings = report["findings"].as_array().expect("findings");
    // What is free on the disk is this machine's matter, not this test's.
    let missing =
        |finding: &&Value| finding["needed"] == true && finding["ok"] == false && finding["subject"] != "disk";
    assert_eq!(findings.iter().find(missing), None, "{doctor:?}");
    let kvm = findings.iter().find(|finding| finding["subject"] == "KVM").expect("a finding about KVM");
    assert_eq!((&kvm["ok"], &kvm["needed"]), (&json!(false), &json!(false)), "{kvm}");
    assert!(kvm["found"].as_str().unwrap_or("").contains(reason), "{kvm}");
    assert!(kvm["hint"].as_str().unwrap_or("").contains("emulated"), "{kvm}");
    let created = rig.call("sandbox::create", &json!({ "image": "python" }));
    let machines = rig.machines();
    assert!(machines.iter().any(|machine| machine.command.contains("-accel tcg")), "{machines:#?}");
    let request = json!({ "sandbox_id": created["sandbox_id"], "argv": ["echo", "emulated"] });
    assert_eq!(rig.call("sandbox::exec", &request)["stdout"], "emulated\n");
}

#[test]
fn without_a_device_vms_are_emulated() {
    emulated_because(KvmDevice::Absent, "there is no /dev/kvm");
}

#[test]
fn with_a_device_that_cannot_run_guests_vms_are_emulated() {
    emulated_because(KvmDevice::Useless, "cannot run a guest");
}

#[test]
fn libkrun_without_kvm_is_refused_and_says_what_to_choose() {
    let rig = Rig::builder()
        .sandboxes_with("driver: libkrun")
        .env("III_DRIVER", "")
        .env("III_ACCEL", "")
        .kvm(KvmDevice::Absent)
        .start();
    let error = rig.trigger("sandbox::create", &json!({ "image": "python" })).expect_err("there is no KVM");
    assert_eq!(error["code"], "S300", "{error}");
    // With a kernel that libkrun does not boot, that is what is wrong first.
    let text = error.to_string();
    let why = ["driver libkrun needs KVM, but there is no /dev/kvm", "does not boot under libkrun"];
    assert!(why.iter().any(|why| text.contains(why)) && text.contains("hint"), "{error}");
}

#[test]
fn a_driver_that_nobody_knows_ends_the_daemon_and_is_named() {
    let rig = Rig::builder().sandboxes_with("driver: firecracker").env("III_DRIVER", "").start_without_sandbox_daemon();
    let named = test_rig::eventually(std::time::Duration::from_secs(60), || {
        let log = rig.log();
        (log.contains("driver `firecracker` is unknown") && log.contains("auto, libkrun, qemu")).then_some(())
    });
    assert!(named.is_some(), "{}", rig.log());
}
