//! Both drivers behind one door.

use std::path::Path;
use std::time::Instant;

use vmm::{VmEvent, VmExit, VmSpec, Wires};
use vmm_host::{Choice, ChoiceError, DriverKind, Kit, KitError, KvmVerdict, QemuProgram, cached_verdict, choose};
use vmm_krun::KrunError;
use vmm_qemu::QemuError;

use crate::probe;

/// Why no driver runs the VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    Kit(#[from] KitError),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error(transparent)]
    Krun(#[from] KrunError),
}

impl DriverError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => Some(error.hint().to_owned()),
            Self::Choice(error) => Some(error.hint()),
            Self::Qemu(error) => error.hint(),
            Self::Krun(error) => error.hint(),
        }
    }
}

/// A driver that can start its VM.
pub(crate) enum Driver<'a> {
    Qemu(vmm_qemu::Driver<'a>),
    Krun(vmm_krun::Driver<'a>),
}

/// A guest whose processors run.
pub(crate) enum Running {
    Qemu(vmm_qemu::Running),
    Krun(vmm_krun::Running),
}

/// What would run a VM of this description, on the verdict that `folder` remembers or a new one.
pub(crate) fn choice(
    driver: vmm::DriverChoice,
    accel: vmm::AccelChoice,
    kit: &Kit,
    folder: &Path,
) -> Result<Choice, ChoiceError> {
    let verdict = || -> KvmVerdict { cached_verdict(folder, probe::in_child) };
    choose(driver, accel, kit.boots(), &QemuProgram::find(), verdict)
}

impl<'a> Driver<'a> {
    pub(crate) fn prepare(spec: &'a VmSpec) -> Result<Self, DriverError> {
        let kit = Kit::open(&spec.kit_dir)?;
        let choice = choice(spec.driver, spec.accel, &kit, &spec.template_dir)?;
        match (choice.driver, QemuProgram::find()) {
            (DriverKind::Libkrun, _) => Ok(Self::Krun(vmm_krun::Driver::prepare(spec)?)),
            (DriverKind::Qemu, QemuProgram::Found(program)) => {
                Ok(Self::Qemu(vmm_qemu::Driver::prepare(spec, program, kit, choice.accel)?))
            }
            (DriverKind::Qemu, QemuProgram::Missing { tried }) => Err(ChoiceError::NoQemu { tried }.into()),
        }
    }

    pub(crate) fn start(
        self,
        wires: Wires,
        since: Instant,
        report: &mut dyn FnMut(VmEvent),
    ) -> Result<Running, DriverError> {
        match self {
            Self::Qemu(driver) => Ok(Running::Qemu(driver.start(wires, since, report)?)),
            Self::Krun(driver) => Ok(Running::Krun(driver.start(wires, since, report)?)),
        }
    }
}

impl Running {
    pub(crate) fn wait(self, report: &mut dyn FnMut(VmEvent)) -> VmExit {
        match self {
            Self::Qemu(running) => running.wait(report),
            Self::Krun(running) => running.wait(),
        }
    }
}
