//! What `iii doctor` asks: which driver and which QEMU a VM would get here, and why; and whether the kit is whole.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vmm::{AccelChoice, DriverChoice};
use vmm_host::{Kit, Origin, QemuProgram};

/// Prints the choice as JSON, or what is in its way; `III_DRIVER` and `III_ACCEL` count as for the daemons.
pub(crate) fn print(kit: &Path, folder: &Path) -> ! {
    let chosen = Kit::open(kit).map_err(|error| (error.to_string(), error.hint().to_owned())).and_then(|kit| {
        let (driver, accel) = vmm::settle_choices(None, None).map_err(|error| (error.to_string(), error.hint()))?;
        crate::driver::choice(driver, accel, &kit, folder).map_err(|error| (error.to_string(), error.hint()))
    });
    answer(chosen.map(|choice| json!(choice)))
}

/// Prints every driver that runs VMs here, one `driver accel` per line, the one that `auto` takes first.
pub(crate) fn print_drivers(kit: &Path, folder: &Path) -> ! {
    let kit = match Kit::open(kit) {
        Ok(kit) => kit,
        Err(error) => answer(Err((error.to_string(), error.hint().to_owned()))),
    };
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (driver, accel) in [
        (DriverChoice::Auto, AccelChoice::Auto),
        (DriverChoice::Qemu, AccelChoice::Kvm),
        (DriverChoice::Libkrun, AccelChoice::Kvm),
        (DriverChoice::Qemu, AccelChoice::Tcg),
    ] {
        let Ok(choice) = crate::driver::choice(driver, accel, &kit, folder) else { continue };
        let names = (choice.driver.name(), choice.accel.name());
        if !found.contains(&names) {
            println!("{} {}", names.0, names.1);
            found.push(names);
        }
    }
    std::process::exit(i32::from(found.is_empty()))
}

/// Compares the kit's checksums, and prints which kernel it has.
pub(crate) fn check_kit(kit: &Path) -> ! {
    let checked = Kit::open(kit).and_then(|kit| kit.verify().map(|()| kit));
    answer(
        checked
            .map(|kit| json!({ "flavour": kit.flavour, "release": kit.release }))
            .map_err(|error| (error.to_string(), error.hint().to_owned())),
    )
}

/// Prints which QEMU there is and its version, or what is wrong with it; `origin` is null where there is none.
pub(crate) fn print_qemu(kit: &Path) -> ! {
    let found = QemuProgram::find(Kit::qemu_in(kit).as_deref());
    let (origin, repair) = match &found {
        QemuProgram::Found { origin: Origin::Kit, .. } => (Some("kit"), "run `make qemu kit`"),
        QemuProgram::Found { origin: Origin::Path, .. } => (Some("path"), "apt install --reinstall qemu-system-x86"),
        QemuProgram::Found { origin: Origin::Named, .. } | QemuProgram::NamedInVain { .. } => {
            (Some("III_QEMU"), "name another program in III_QEMU, or unset it")
        }
        QemuProgram::NotInstalled | QemuProgram::OtherProcessor => (None, ""),
    };
    let version = match found.path() {
        Ok(program) => version(program).map_err(|error| (error, repair.to_owned())),
        Err(error) => Err((error.to_string(), error.hint())),
    };
    match version {
        Ok(version) => answer(Ok(json!({ "origin": origin, "version": version }))),
        Err((error, hint)) => {
            println!("{}", json!({ "origin": origin, "error": error, "hint": hint }));
            std::process::exit(1)
        }
    }
}

fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        return Ok(format!("{}: {}", text.lines().next().unwrap_or_default(), program.display()));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} ended with {}: {}", program.display(), output.status, words.lines().last().unwrap_or_default()))
}

fn answer(answer: Result<Value, (String, String)>) -> ! {
    let (answer, status) = match answer {
        Ok(answer) => (answer, 0),
        Err((error, hint)) => (json!({ "error": error, "hint": hint }), 1),
    };
    println!("{answer}");
    std::process::exit(status)
}
