//! The published SDKs against the engine, unmodified.

use std::path::Path;

use test_rig::{Rig, sdk};

#[test]
fn python_and_node_call_each_other_ten_thousand_times() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
    let rig = Rig::builder().start();
    let in_python = sdk::start(&rig, sdk::PYTHON, &programs.join("python_worker.py"));
    let in_node = sdk::start(&rig, sdk::NODE, &programs.join("node_worker.mjs"));
    for (name, child) in [("python", in_python), ("node", in_node)] {
        let output = child.wait_with_output().expect("an exit");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let summary = sdk::summary(name, &String::from_utf8_lossy(&output.stdout));
        assert_eq!(summary["answered"], 10_000, "{name}: {summary}");
        assert_eq!(summary["typed_error"], true, "{name}: {summary}");
    }
}
