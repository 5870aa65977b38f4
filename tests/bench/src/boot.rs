//! A warm start against a cold boot of the same kernel, and both against the bare program that runs the VM.

use std::path::Path;
use std::time::Duration;

use test_rig::{Driver, Feature};
use tokio::runtime::Runtime;

use crate::bare;
use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const CLONES: usize = 20;
const COLD_BOOTS: usize = 5;

pub(crate) fn measure(report: &mut Report) {
    let runtime = Runtime::new().expect("a runtime");
    let driver = Driver::this();
    let on = format!("{} on {}", driver.name, driver.accel);
    if driver.lacks(Feature::Templates).is_some() {
        return boots(report, &runtime, &on);
    }
    clones(report, &runtime, &format!("{on}, installed kit"), &machine::kit(), "");
    if let Some(debian) = machine::debian_kit("boots") {
        clones(report, &runtime, &format!("{on}, Debian's kernel and QEMU"), &debian, "≤ 0.125");
    }
}

/// A driver that restores.
fn clones(report: &mut Report, runtime: &Runtime, name: &str, kit: &Path, target: &str) {
    let folder = machine::folder();
    let round = |clone| {
        let recipe = Recipe { kit, root: None, folder: folder.path(), clone, port: None };
        runtime.block_on(machine::boot(&recipe)).1
    };
    // Builds the template.
    round(true);
    let template = bare::Template::find(&folder.path().join("templates")).expect("a template");
    template.restore(folder.path());
    let (mut clones, mut bare, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..CLONES {
        bare.push(template.restore(folder.path()));
        clones.push(round(true));
        if number < COLD_BOOTS {
            cold.push(round(false));
        }
    }
    let ours = Samples::from_ms(clones.iter().zip(&bare).map(|(clone, bare)| over(*clone, *bare)));
    let [cold, clones, bare] = [cold, clones, bare].map(Samples::from_durations);
    report.row(&format!("cold boot → guest answers, {name}"), cold.clone(), None, "");
    report.row(&format!("template clone → guest answers, {name}"), clones, Some(("cold boot", &cold)), target);
    report.row(&format!("bare QEMU, restore → guest answers, {name}"), bare, Some(("cold boot", &cold)), "");
    report.row("… of the clone ours, over the bare restore", ours, None, "≤ 15 ms");
}

/// A driver that boots.
fn boots(report: &mut Report, runtime: &Runtime, name: &str) {
    let kit = machine::kit();
    let folder = machine::folder();
    let recipe = Recipe { kit: &kit, root: None, folder: folder.path(), clone: false, port: None };
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..COLD_BOOTS {
        let (machine, elapsed) = runtime.block_on(machine::boot(&recipe));
        ours.push(elapsed);
        let run = machine.end();
        bare.push(bare::libkrun(&run.path().join("vm.json")));
    }
    let more = Samples::from_ms(ours.iter().zip(&bare).map(|(ours, bare)| over(*ours, *bare)));
    let [ours, bare] = [ours, bare].map(Samples::from_durations);
    report.row(&format!("cold boot → guest answers, {name}"), ours, Some(("bare libkrun", &bare)), "");
    report.row(&format!("bare libkrun, boot → Hello, {name}"), bare, None, "");
    report.row("… of the boot ours, over the bare one", more, None, "");
}

fn over(ours: Duration, bare: Duration) -> f64 {
    (ours.as_secs_f64() - bare.as_secs_f64()) * 1000.0
}
