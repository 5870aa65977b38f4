//! Which driver runs a VM, and on what: the rule behind `driver: auto` and `accel: auto`.
//!
//! | KVM runs guests | QEMU found | kernel fits | taken |
//! |---|---|---|---|
//! | yes | yes | QEMU | `qemu` on `kvm`: it restores templates, which is faster than any boot |
//! | yes | no | libkrun | `libkrun` on `kvm`: nothing to install |
//! | no | yes | QEMU | `qemu` on `tcg` |
//!
//! What a person names is taken or refused, never replaced.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::{AccelChoice, DriverChoice};

use crate::kvm_probe::KvmVerdict;
use crate::qemu_program::QemuProgram;

/// How instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    Libkrun,
    Qemu,
}

impl DriverKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Libkrun => "libkrun",
            Self::Qemu => "qemu",
        }
    }
}

/// What was settled, and the reason for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub driver: DriverKind,
    pub accel: Accel,
    pub why: String,
}

/// Why nothing fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("KVM was asked for, but {reason}", reason = .verdict.reason())]
    NoKvm { verdict: KvmVerdict },
    #[error("driver libkrun needs KVM, but {reason}", reason = .verdict.reason())]
    LibkrunNeedsKvm { verdict: KvmVerdict },
    #[error("driver libkrun runs on KVM only, not on accel `tcg`")]
    LibkrunDoesNotEmulate,
    #[error("the kit's kernel ({flavour}) does not boot under libkrun: it finds no devices without ACPI")]
    KernelUnfit { flavour: String },
    #[error("the kit's kernel ({flavour}) does not boot under QEMU's microvm: it has no ACPI")]
    KernelUnfitForQemu { flavour: String },
    #[error("QEMU is not installed: there is no qemu-system-x86_64 in PATH")]
    NoQemu,
    #[error("III_QEMU names {path}, which is no file", path = .path.display())]
    QemuNamedInVain { path: PathBuf },
    #[error("driver qemu runs on x86-64 processors only")]
    QemuNeedsX86,
    #[error("nothing here runs VMs: driver qemu is for x86-64 processors, driver libkrun needs KVM, and {reason}", reason = .verdict.reason())]
    NoDriver { verdict: KvmVerdict },
}

impl ChoiceError {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoKvm { .. } => "choose accel `auto` or `tcg` (slower, and a weaker boundary)".to_owned(),
            Self::LibkrunNeedsKvm { .. } => "choose driver `auto` or `qemu`".to_owned(),
            Self::LibkrunDoesNotEmulate => "choose driver `qemu`, or accel `auto`".to_owned(),
            Self::KernelUnfit { .. } => "build our own kernel with `make kernel`, then `make kit`".to_owned(),
            Self::KernelUnfitForQemu { .. } => "run `make kit` for a kernel that QEMU boots".to_owned(),
            Self::QemuNeedsX86 => "choose driver `auto` or `libkrun`".to_owned(),
            Self::NoDriver { .. } => "docs/platforms.md says which machines do".to_owned(),
            Self::NoQemu => "apt install qemu-system-x86, or name the program in III_QEMU".to_owned(),
            Self::QemuNamedInVain { .. } => "give the program's path, or unset it".to_owned(),
        }
    }
}

/// What the kit's kernel can be booted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boots<'a> {
    pub flavour: &'a str,
    pub qemu: bool,
    pub libkrun: bool,
}

/// Applies the rule. `verdict` is asked for KVM only where it matters: the first time it costs a process.
///
/// # Errors
/// [`ChoiceError`], each with a next step.
pub fn choose(
    driver: DriverChoice,
    accel: AccelChoice,
    boots: Boots<'_>,
    qemu: &QemuProgram,
    verdict: impl FnOnce() -> KvmVerdict,
) -> Result<Choice, ChoiceError> {
    let settled = |driver, accel, why: &str| Ok(Choice { driver, accel, why: why.to_owned() });
    // Which program it would be matters only where it could boot the kernel.
    let qemu_fits = || {
        if boots.qemu {
            return qemu.path().map(drop);
        }
        Err(ChoiceError::KernelUnfitForQemu { flavour: boots.flavour.to_owned() })
    };
    let libkrun_fits =
        || if boots.libkrun { Ok(()) } else { Err(ChoiceError::KernelUnfit { flavour: boots.flavour.to_owned() }) };
    match (driver, accel) {
        (DriverChoice::Libkrun, AccelChoice::Tcg) => Err(ChoiceError::LibkrunDoesNotEmulate),
        (DriverChoice::Libkrun, _) => {
            libkrun_fits()?;
            match verdict() {
                KvmVerdict::Works => settled(DriverKind::Libkrun, Accel::Kvm, "asked for"),
                verdict => Err(ChoiceError::LibkrunNeedsKvm { verdict }),
            }
        }
        (_, AccelChoice::Tcg) => {
            qemu_fits()?;
            settled(DriverKind::Qemu, Accel::Tcg, "emulation was asked for")
        }
        (driver, accel) => match verdict() {
            KvmVerdict::Works => match qemu_fits() {
                Ok(()) => settled(DriverKind::Qemu, Accel::Kvm, "KVM works, and QEMU restores VMs instead of booting"),
                Err(error @ ChoiceError::QemuNamedInVain { .. }) => Err(error),
                Err(_) if driver == DriverChoice::Auto => {
                    libkrun_fits()?;
                    settled(DriverKind::Libkrun, Accel::Kvm, "KVM works, and QEMU cannot be used here")
                }
                Err(error) => Err(error),
            },
            verdict if accel == AccelChoice::Kvm => Err(ChoiceError::NoKvm { verdict }),
            verdict if driver == DriverChoice::Auto && *qemu == QemuProgram::OtherProcessor => {
                Err(ChoiceError::NoDriver { verdict })
            }
            verdict => {
                qemu_fits()?;
                settled(DriverKind::Qemu, Accel::Tcg, &format!("emulated, since {}", verdict.reason()))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu_program::Origin;
    use DriverKind::{Libkrun, Qemu};

    const BOTH: Boots<'_> = Boots { flavour: "iii", qemu: true, libkrun: true };
    const DEBIAN: Boots<'_> = Boots { flavour: "debian-cloud", qemu: true, libkrun: false };
    const KRUNFW: Boots<'_> = Boots { flavour: "libkrunfw", qemu: false, libkrun: true };

    fn qemu(there: bool) -> QemuProgram {
        if there { QemuProgram::Found { path: "/q".into(), origin: Origin::Path } } else { QemuProgram::NotInstalled }
    }

    fn auto(boots: Boots<'_>, qemu_there: bool, verdict: KvmVerdict) -> Result<(DriverKind, Accel), ChoiceError> {
        choose(DriverChoice::Auto, AccelChoice::Auto, boots, &qemu(qemu_there), || verdict)
            .map(|choice| (choice.driver, choice.accel))
    }

    #[test]
    fn auto_follows_the_table() {
        assert_eq!(auto(BOTH, true, KvmVerdict::Works), Ok((Qemu, Accel::Kvm)));
        assert_eq!(auto(BOTH, false, KvmVerdict::Works), Ok((Libkrun, Accel::Kvm)));
        assert_eq!(auto(KRUNFW, true, KvmVerdict::Works), Ok((Libkrun, Accel::Kvm)));
        assert_eq!(auto(DEBIAN, true, KvmVerdict::Works), Ok((Qemu, Accel::Kvm)));
        assert_eq!(auto(BOTH, true, KvmVerdict::Absent), Ok((Qemu, Accel::Tcg)));
        assert!(matches!(auto(BOTH, false, KvmVerdict::Absent), Err(ChoiceError::NoQemu)));
        assert!(matches!(auto(DEBIAN, false, KvmVerdict::Works), Err(ChoiceError::KernelUnfit { .. })));
        assert!(matches!(auto(KRUNFW, true, KvmVerdict::Absent), Err(ChoiceError::KernelUnfitForQemu { .. })));
    }

    #[test]
    fn what_is_named_is_taken_or_refused() {
        let ask = |driver, accel, boots, verdict| choose(driver, accel, boots, &qemu(true), || verdict);
        let taken = ask(DriverChoice::Libkrun, AccelChoice::Auto, BOTH, KvmVerdict::Works).unwrap();
        assert_eq!((taken.driver, taken.accel), (Libkrun, Accel::Kvm));
        let refused = |driver, accel, boots, verdict| ask(driver, accel, boots, verdict).unwrap_err();
        assert!(matches!(
            refused(DriverChoice::Libkrun, AccelChoice::Auto, BOTH, KvmVerdict::NoPermission),
            ChoiceError::LibkrunNeedsKvm { verdict: KvmVerdict::NoPermission }
        ));
        assert_eq!(
            refused(DriverChoice::Libkrun, AccelChoice::Tcg, BOTH, KvmVerdict::Works),
            ChoiceError::LibkrunDoesNotEmulate
        );
        assert!(matches!(
            refused(DriverChoice::Libkrun, AccelChoice::Kvm, DEBIAN, KvmVerdict::Works),
            ChoiceError::KernelUnfit { .. }
        ));
        assert!(matches!(
            refused(DriverChoice::Auto, AccelChoice::Kvm, BOTH, KvmVerdict::Absent),
            ChoiceError::NoKvm { .. }
        ));
        let in_vain = QemuProgram::NamedInVain { path: "/q".into() };
        let named = |driver, boots| choose(driver, AccelChoice::Auto, boots, &in_vain, || KvmVerdict::Works);
        assert_eq!(named(DriverChoice::Auto, BOTH), Err(ChoiceError::QemuNamedInVain { path: "/q".into() }));
        assert_eq!(named(DriverChoice::Auto, KRUNFW).unwrap().driver, Libkrun, "no QEMU boots this kernel");
        assert_eq!(named(DriverChoice::Libkrun, BOTH).unwrap().driver, Libkrun);
    }

    #[test]
    fn another_processor_has_libkrun_or_nothing() {
        let ask = |driver, verdict| {
            choose(driver, AccelChoice::Auto, BOTH, &QemuProgram::OtherProcessor, || verdict)
                .map(|choice| choice.driver)
        };
        assert_eq!(ask(DriverChoice::Auto, KvmVerdict::Works), Ok(Libkrun));
        let none = ask(DriverChoice::Auto, KvmVerdict::Absent).unwrap_err();
        assert_eq!(none, ChoiceError::NoDriver { verdict: KvmVerdict::Absent });
        assert!(none.to_string().ends_with("there is no /dev/kvm"), "{none}");
        assert_eq!(ask(DriverChoice::Qemu, KvmVerdict::Absent), Err(ChoiceError::QemuNeedsX86));
    }

    #[test]
    fn kvm_is_not_asked_about_where_emulation_was_asked_for() {
        let choice = choose(DriverChoice::Auto, AccelChoice::Tcg, BOTH, &qemu(true), || panic!("asked"));
        assert_eq!(choice.unwrap().accel, Accel::Tcg);
    }
}
