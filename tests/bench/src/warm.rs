//! A sandbox whose VM was booted before anybody asked, where the driver cannot restore one.

use std::time::{Duration, Instant};

use serde_json::json;
use test_rig::{Driver, Feature, Rig, eventually};

use crate::report::{Report, Samples};
use crate::sandbox::{call, connect};

const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn measure(report: &mut Report) {
    let driver = Driver::this();
    if driver.lacks(Feature::Templates).is_none() {
        eprintln!("not measured: VMs that wait ({} restores)", driver.name);
        return;
    }
    let booted = creations(0);
    let waited = creations(1024);
    let name = format!("sandbox::create → answer, its VM waited, {} on {}", driver.name, driver.accel);
    report.row(&name, waited, Some(("its VM is booted", &booted)), "");
}

/// Of sandboxes, each with the next VM waiting if `pool_mib` has room for it.
fn creations(pool_mib: u32) -> Samples {
    let rig = Rig::builder().sandboxes_with(&format!("warm_pool_mb: {pool_mib}")).start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut times = Vec::new();
    runtime.block_on(async {
        let client = connect(&rig).await;
        call(&client, "sandbox::run", json!({ "image": "python", "code": "pass" })).await;
        for round in 0..ROUNDS {
            if pool_mib > 0 {
                let waits = || (rig.log().matches("is booted and waits").count() > round).then_some(());
                assert!(eventually(PATIENCE, waits).is_some(), "no VM waits\n{}", rig.log());
            }
            let start = Instant::now();
            let id = call(&client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
            times.push(start.elapsed());
            call(&client, "sandbox::stop", json!({ "sandbox_id": id, "wait": true })).await;
        }
    });
    Samples::from_durations(times)
}
