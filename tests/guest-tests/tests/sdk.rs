//! The published Python SDK inside a guest and the published npm SDK on the host, through the engine.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use test_rig::{Rig, eventually, sdk};

/// The install with Python emulated, six minutes in an emulated machine that has other things to do, and calls both ways.
const INSTALL_PATIENCE: Duration = Duration::from_secs(1200);
const CALL_PATIENCE: Duration = Duration::from_millis(90);

#[test]
fn python_in_a_guest_and_node_on_the_host_call_each_other_ten_thousand_times() {
    // Fewer where every exit of the guest to its host is emulated.
    let calls: u32 = std::env::var("III_TEST_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(10_000);
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
    let manifest = format!(
        "name: caller\nruntime:\n  base_image: python\nscripts:\n  install: pip install --quiet {}\n  start: python3 worker.py\nenv:\n  OTEL_ENABLED: \"false\"\n  III_TEST_CALLS: \"{calls}\"\nresources:\n  cpus: 1\n  memory: 1024\n",
        sdk::PYTHON.package()
    );
    let worker = std::fs::read_to_string(programs.join("python_worker.py")).expect("the worker");
    let rig = Rig::builder().file("caller/iii.worker.yaml", &manifest).file("caller/worker.py", &worker).start();
    let node = sdk::start(&rig, sdk::NODE, &programs.join("node_worker.mjs"));
    let folder = rig.project().join("caller");
    let added = rig.call("worker::add", &json!({ "source": { "kind": "local", "path": folder }, "wait": false }));
    assert_eq!(added["name"], "caller");
    // It ends when it is done, and is started again: its first words are its first life's.
    let said = eventually(INSTALL_PATIENCE + calls * CALL_PATIENCE, || {
        let logs = rig.call("worker::logs", &json!({ "name": "caller" }));
        let lines: Vec<String> = serde_json::from_value(logs["stdout"].clone()).ok()?;
        lines.into_iter().find(|line| line.starts_with('{'))
    });
    let said = said.unwrap_or_else(|| panic!("python never finished\n{}", rig.log()));
    let output = node.wait_with_output().expect("an exit");
    assert!(output.status.success(), "node: {}", String::from_utf8_lossy(&output.stderr));
    for (name, said) in [("python", said), ("node", String::from_utf8_lossy(&output.stdout).into_owned())] {
        let summary = sdk::summary(name, &said);
        assert_eq!(summary["answered"], calls, "{name}: {summary}");
        assert_eq!(summary["typed_error"], true, "{name}: {summary}");
    }
}
