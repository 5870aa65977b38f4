//! VMs that wait, booted, where a driver cannot restore them; and VMs that need not, where it can.

use std::time::Duration;

use serde_json::json;
use test_rig::{Driver, Feature, Rig, eventually, kill};

use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(120);

fn create(rig: &Rig, memory_mb: u32) -> String {
    let created = rig.call("sandbox::create", &json!({ "image": "python", "memory_mb": memory_mb }));
    created["sandbox_id"].as_str().expect("an id").to_owned()
}

fn host_name(rig: &Rig, id: &str) -> String {
    let answer =
        rig.call("sandbox::exec", &json!({ "sandbox_id": id, "argv": ["cat", "/etc/hostname", "/etc/machine-id"] }));
    answer["stdout"].as_str().expect("a name").to_owned()
}

/// The VMs that run, when there have been `count` of them.
fn machines(rig: &Rig, count: usize) -> Vec<test_rig::Process> {
    let found = eventually(PATIENCE, || {
        let machines = rig.machines();
        (machines.len() == count).then_some(machines)
    });
    found.unwrap_or_else(|| panic!("not {count} VMs: {:#?}\n{}", rig.machines(), rig.log()))
}

#[test]
fn a_sandbox_finds_its_vm_booted_already() {
    let rig = Rig::builder().sandboxes_with("warm_pool_mb: 600").start();
    let first = create(&rig, 256);
    if Driver::this().lacks(Feature::Templates).is_none() {
        // Restoring is as fast as having one: none waits.
        machines(&rig, 1);
        assert!(rig.log().contains("start=\"restored\""), "{}", rig.log());
        let second = create(&rig, 256);
        machines(&rig, 2);
        assert_ne!(host_name(&rig, &first), host_name(&rig, &second));
        return;
    }
    machines(&rig, 2);
    assert!(
        eventually(PATIENCE, || rig.log().contains("is booted and waits").then_some(())).is_some(),
        "{}",
        rig.log()
    );
    let second = create(&rig, 256);
    assert!(rig.log().contains("start=\"waited\""), "{}", rig.log());
    assert_ne!(host_name(&rig, &first), host_name(&rig, &second));
    // Another kind: of the two that could wait, 600 MiB hold one.
    machines(&rig, 3);
    let _ = create(&rig, 512);
    machines(&rig, 4);
}

#[test]
fn a_waiting_vm_that_dies_costs_a_boot_and_no_error() {
    let rig = Rig::builder().sandboxes_with("warm_pool_mb: 600").start();
    let first = create(&rig, 256);
    if Driver::this().lacks(Feature::Templates).is_none() {
        machines(&rig, 1);
        return;
    }
    let waits = || rig.log().contains("is booted and waits").then_some(());
    assert!(eventually(PATIENCE, waits).is_some(), "{}", rig.log());
    let youngest = machines(&rig, 2).into_iter().max_by_key(|machine| machine.start_time).expect("a VM");
    kill(youngest.pid, Signal::SIGKILL);
    let second = create(&rig, 256);
    assert_ne!(host_name(&rig, &first), host_name(&rig, &second));
}
