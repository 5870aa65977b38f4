//! What `iii doctor` asks: which driver a VM would get here, and why.

use std::path::Path;

use vmm_host::Kit;

/// Prints the choice as JSON, or what is in its way; `III_DRIVER` and `III_ACCEL` count as for the daemons.
pub(crate) fn print(kit: &Path, folder: &Path) -> ! {
    let chosen = Kit::open(kit).map_err(|error| (error.to_string(), error.hint().to_owned())).and_then(|kit| {
        let (driver, accel) = vmm::settle_choices(None, None).map_err(|error| (error.to_string(), error.hint()))?;
        crate::driver::choice(driver, accel, &kit, folder).map_err(|error| (error.to_string(), error.hint()))
    });
    let (answer, status) = match chosen {
        Ok(choice) => (serde_json::json!(choice), 0),
        Err((error, hint)) => (serde_json::json!({ "error": error, "hint": hint }), 1),
    };
    println!("{answer}");
    std::process::exit(status)
}
