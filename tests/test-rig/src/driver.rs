//! What runs the guests of these tests, and what it cannot do.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::Command;

use serde_json::Value;

use crate::rig::{bin_dir, shared_home};

/// What not every driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// It is a program that can be missing.
    SeparateProgram,
    /// VMs are restored from templates.
    Templates,
    /// VMs can be saved, forked, paused.
    Snapshots,
    /// A VM whose disk is full on the host waits for space.
    WaitsForSpace,
    /// Guests are emulated where KVM does not work.
    Emulation,
}

/// The driver that a VM gets here, such as `qemu` on `tcg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    pub name: String,
    pub accel: String,
}

impl Driver {
    /// As `iii-vm` would choose now; `III_DRIVER` and `III_ACCEL` count.
    ///
    /// # Panics
    /// When no driver can be used: then no test of this kind can run.
    #[must_use]
    pub fn this() -> Self {
        let home = shared_home();
        let asked = Command::new(bin_dir().join("iii-vm"))
            .arg("--choice")
            .args([home.join("lib/kit"), home.join("templates")])
            .output()
            .expect("iii-vm runs");
        let answer: Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        let text = |field: &str| answer[field].as_str().map(str::to_owned);
        match (text("driver"), text("accel")) {
            (Some(name), Some(accel)) => Self { name, accel },
            _ => panic!("no driver runs guests here: {answer}"),
        }
    }

    /// Why it does not have `feature`; `None` when it has.
    #[must_use]
    pub fn lacks(&self, feature: Feature) -> Option<&'static str> {
        match (self.name.as_str(), feature) {
            ("libkrun", Feature::SeparateProgram) => Some("it is linked into iii-vm"),
            ("libkrun", Feature::Templates) => Some("it cannot save a machine, and boots instead"),
            ("libkrun", Feature::Snapshots) => Some("it cannot save a machine"),
            ("libkrun", Feature::WaitsForSpace) => Some("its guest gets the I/O error"),
            ("libkrun", Feature::Emulation) => Some("it needs KVM"),
            _ => None,
        }
    }
}

/// Whether the driver has `feature`. If not, a line says so, on standard error and in the file that `III_TEST_REPORT`
/// names, for the table of drivers.
#[must_use]
pub fn supported(feature: Feature) -> bool {
    let driver = Driver::this();
    let Some(reason) = driver.lacks(feature) else { return true };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("not supported\t{}\t{}\t{test}\t{reason}\n", driver.name, driver.accel);
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(report) = std::env::var_os("III_TEST_REPORT") {
        let file = OpenOptions::new().create(true).append(true).open(report);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the report can be written");
    }
    false
}
