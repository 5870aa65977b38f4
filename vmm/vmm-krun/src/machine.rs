//! The VM's own process: from its description into the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm::{VmSpec, Wires};
use vmm_host::Kit;

use crate::confine::confine;
use crate::error::KrunError;
use crate::ffi::Context;
use crate::sys;

/// The argument with which `iii-vm` is started as a VM's process; a description and the numbers of two descriptors follow it.
pub const ENTER_FLAG: &str = "--libkrun";

/// libkrun counts processors in a byte, and its interrupt controller's table ends before that.
pub(crate) const MAX_VCPUS: u8 = 64;

/// Exit status of a VM's process that panicked.
const PANICKED: i32 = 101;

/// The inherited descriptors, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) guest: RawFd,
    pub(crate) net: RawFd,
}

impl Ends {
    pub(crate) fn to_argument(self) -> String {
        format!("{},{}", self.guest, self.net)
    }

    fn parse(argument: &str) -> Option<Self> {
        let (guest, net) = argument.split_once(',')?;
        let number = |text: &str| text.parse().ok().filter(|number| *number > 2);
        let ends = Self { guest: number(guest)?, net: number(net)? };
        (ends.guest != ends.net).then_some(ends)
    }
}

/// Becomes the VM that `spec` describes. Comes back only with the reason why not.
///
/// # Errors
/// Always.
pub fn enter(spec: &VmSpec, kit: &Kit, ends: &str) -> KrunError {
    // A device's thread that panicked would leave a guest that waits for it for ever.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(PANICKED);
    }));
    match describe(spec, kit, ends).and_then(|context| confine().map(|()| context).map_err(Into::into)) {
        Ok(context) => context.enter(),
        Err(error) => error,
    }
}

fn describe(spec: &VmSpec, kit: &Kit, ends: &str) -> Result<Context, KrunError> {
    let inherited = |source: io::Error| KrunError::Refused { call: "the inherited descriptors", source };
    let ends = Ends::parse(ends).ok_or_else(|| inherited(io::ErrorKind::InvalidInput.into()))?;
    let (guest, net) = (sys::inherited(ends.guest), sys::inherited(ends.net));
    for stream in [&guest, &net] {
        nonblocking(stream).map_err(inherited)?;
    }
    let vcpus = u8::try_from(spec.vcpus.get())
        .map_err(|_| KrunError::TooManyVcpus { given: spec.vcpus.get(), max: MAX_VCPUS })?;
    let context = Context::new(vcpus, spec.memory.mib())?;
    context.kernel(&kit.kernel, &kit.initramfs, &command_line(&kit.flavour))?;
    context.serial_console(console().map_err(inherited)?)?;
    context.port(Wires::PORT_NAME, guest)?;
    context.disk("root", &spec.root_disk, true, false)?;
    context.disk("scratch", &spec.scratch_disk, false, spec.scratch_is_kept)?;
    context.network(net, Wires::BOOT_MAC)?;
    Ok(context)
}

/// libkrun's machine has no ACPI and no PCI; it appends where its devices are. `reboot=k`: only a reset by the keyboard
/// controller ends it.
fn command_line(flavour: &str) -> String {
    if cfg!(target_arch = "aarch64") {
        return "console=ttyAMA0 quiet panic=-1 reboot=k rcupdate.rcu_expedited=1 rdinit=/init".to_owned();
    }
    // The packaged kernel has no driver for a serial line, but writes to the same port early on.
    let console = if flavour == "libkrunfw" { "earlyprintk=ttyS0 keep_bootcon" } else { "console=ttyS0" };
    format!(
        "{console} quiet panic=-1 reboot=k pci=off acpi=off no_timer_check tsc=reliable rcupdate.rcu_expedited=1 rdinit=/init"
    )
}

fn nonblocking(stream: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(stream.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(stream.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Our standard output is the guest's console, and nobody else's from now on.
fn console() -> io::Result<OwnedFd> {
    let console = io::stdout().as_fd().try_clone_to_owned()?;
    let null: File = OpenOptions::new().write(true).open(Path::new("/dev/null"))?;
    nix::unistd::dup2_stdout(null)?;
    Ok(console)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_by_number() {
        let ends = Ends { guest: 7, net: 9 };
        assert_eq!(Ends::parse(&ends.to_argument()), Some(ends));
        for bad in ["", "7", "7,7", "1,9", "7,x", "-7,9"] {
            assert_eq!(Ends::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_reset_ends_the_machine_and_a_panic_resets() {
        for flavour in ["iii", "libkrunfw"] {
            let line = command_line(flavour);
            assert!(line.contains("reboot=k") && line.contains("panic=-1"), "{line}");
        }
    }
}
