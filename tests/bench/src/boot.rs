//! A clone of a template against a cold boot of the same kernel.

use std::path::{Path, PathBuf};

use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const CLONES: usize = 20;
const COLD_BOOTS: usize = 5;

/// Where `make bench` has put a kit with Debian's kernel.
const DEBIAN_KIT: &str = "III_BENCH_DEBIAN_KIT";

pub(crate) fn measure(report: &mut Report) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    kit(report, &runtime, "installed kernel", &machine::kit(), "");
    match std::env::var_os(DEBIAN_KIT).map(PathBuf::from) {
        Some(debian) => kit(report, &runtime, "Debian kernel", &debian, "≤ 0.125"),
        None => eprintln!("not measured: the Debian kernel ({DEBIAN_KIT} names no kit; `make bench` makes one)"),
    }
}

fn kit(report: &mut Report, runtime: &tokio::runtime::Runtime, name: &str, kit: &Path, target: &str) {
    let folder = machine::folder();
    let round = |clone| {
        let recipe = Recipe { kit, root: None, folder: folder.path(), clone, port: None };
        runtime.block_on(machine::boot(&recipe)).1
    };
    // Builds the template.
    round(true);
    let (mut clones, mut cold) = (Vec::new(), Vec::new());
    for number in 0..CLONES {
        clones.push(round(true));
        if number < COLD_BOOTS {
            cold.push(round(false));
        }
    }
    let cold = Samples::from_durations(cold);
    let clones = Samples::from_durations(clones);
    report.row(&format!("template clone → guest answers, {name}"), clones, Some(("cold boot", &cold)), target);
}
