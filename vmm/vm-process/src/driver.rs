//! Both drivers behind one door.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use vmm::{
    AccelChoice, DriverChoice, NoSnapshot, SnapshotInfo, TemplateUse, UnknownChoice, VmCommand, VmEvent, VmExit,
    VmSpec, Wires,
};
use vmm_host::{Choice, ChoiceError, DriverKind, Kit, KitError, KvmVerdict, QemuProgram, cached_verdict, choose};
use vmm_krun::KrunError;
use vmm_qemu::QemuError;

use crate::{commands, probe};

/// Why no driver runs the VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    Kit(#[from] KitError),
    #[error(transparent)]
    Snapshot(#[from] NoSnapshot),
    #[error("the snapshot cannot run here: {0}")]
    TakenOn(#[from] UnknownChoice),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("the snapshot needs another driver or accelerator than the configuration names")]
    SnapshotElsewhere,
    #[error("the snapshot was taken elsewhere: {0}")]
    SnapshotNeeds(ChoiceError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error(transparent)]
    Krun(#[from] KrunError),
}

impl DriverError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => Some(error.hint().to_owned()),
            Self::Snapshot(error) => error.hint(),
            Self::TakenOn(error) => Some(error.hint()),
            Self::SnapshotElsewhere => Some("set driver and accel to `auto`, or take the snapshot anew".to_owned()),
            Self::Choice(error) | Self::SnapshotNeeds(error) => Some(error.hint()),
            Self::Qemu(error) => error.hint(),
            Self::Krun(error) => error.hint(),
        }
    }
}

/// A driver that can start its VM.
pub(crate) enum Driver<'a> {
    Qemu(Box<vmm_qemu::Driver<'a>>),
    Krun(vmm_krun::Driver<'a>),
}

/// A guest whose processors run.
pub(crate) enum Running {
    Qemu(Box<vmm_qemu::Running>),
    Krun(vmm_krun::Running),
}

/// A snapshot runs where it was taken, or not at all.
fn asked_for(spec: &VmSpec) -> Result<(DriverChoice, AccelChoice), DriverError> {
    match &spec.template {
        TemplateUse::Snapshot { folder, .. } => {
            let accel: AccelChoice = SnapshotInfo::read(folder)?.accel.parse()?;
            // No other driver takes any; QEMU's refuses what is not its own. What the operator named is not replaced.
            if spec.driver == DriverChoice::Libkrun || (spec.accel != AccelChoice::Auto && spec.accel != accel) {
                return Err(DriverError::SnapshotElsewhere);
            }
            Ok((DriverChoice::Qemu, accel))
        }
        TemplateUse::Clone | TemplateUse::Never | TemplateUse::Discard => Ok((spec.driver, spec.accel)),
    }
}

/// What would run a VM of this description, on the verdict that `folder` remembers or a new one.
pub(crate) fn choice(
    driver: DriverChoice,
    accel: AccelChoice,
    kit: &Kit,
    folder: &Path,
) -> Result<Choice, ChoiceError> {
    let verdict = || -> KvmVerdict { cached_verdict(folder, probe::in_child) };
    choose(driver, accel, kit.boots(), &QemuProgram::find(kit.qemu.as_deref()), verdict)
}

impl<'a> Driver<'a> {
    pub(crate) fn prepare(spec: &'a VmSpec) -> Result<Self, DriverError> {
        let kit = Kit::open(&spec.kit_dir)?;
        let (driver, accel) = asked_for(spec)?;
        let choice = choice(driver, accel, &kit, &spec.template_dir).map_err(|error| match spec.template {
            TemplateUse::Snapshot { .. } => DriverError::SnapshotNeeds(error),
            _ => error.into(),
        })?;
        match choice.driver {
            DriverKind::Libkrun => Ok(Self::Krun(vmm_krun::Driver::prepare(spec)?)),
            DriverKind::Qemu => {
                let found = QemuProgram::find(kit.qemu.as_deref());
                let program = vmm_qemu::Program { path: found.path()?.to_owned(), may_be_ours: found.may_be_ours() };
                Ok(Self::Qemu(Box::new(vmm_qemu::Driver::prepare(spec, program, kit, choice.accel)?)))
            }
        }
    }

    pub(crate) fn start(
        self,
        wires: Wires,
        since: Instant,
        report: &mut dyn FnMut(VmEvent),
    ) -> Result<Running, DriverError> {
        match self {
            Self::Qemu(driver) => Ok(Running::Qemu(Box::new(driver.start(wires, since, report)?))),
            Self::Krun(driver) => Ok(Running::Krun(driver.start(wires, since, report)?)),
        }
    }
}

impl Running {
    pub(crate) fn wait(self, commands: Receiver<VmCommand>, report: &mut dyn FnMut(VmEvent)) -> VmExit {
        match self {
            Self::Qemu(running) => running.wait(commands, report),
            Self::Krun(running) => {
                commands::refuse(commands, DriverKind::Libkrun.name());
                running.wait()
            }
        }
    }
}
