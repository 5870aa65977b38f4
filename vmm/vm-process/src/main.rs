//! `iii-vm`: one VM, from its description to its end.
//!
//! ```text
//!   stdin: lifeline, commands        3: guest channel
//!                 │                       │
//! daemon ────► iii-vm ── driver ──► VM  ◄─┘        stdout: one VmEvent per line
//!                 └── relay ◄─ frames ─┘           stderr: log
//! ```
//! The VM is QEMU, or this program again with `--libkrun`. Knows which driver to take and who sits at the ends of its
//! wires. Knows no image, worker or guest protocol.
//!
//! Always true:
//! - When the lifeline closes, or this process dies in any way, the VM's process dies.
//! - `Exited` is printed once, and last.

mod choice;
mod commands;
mod driver;
mod log;
mod network;
mod probe;
mod report;
mod sys;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use vmm::{Unrestorable, VmCommand, VmExit, VmSpec, Wires};
use vmm_host::Kit;

use crate::driver::{Driver, DriverError, Running};

/// A description is a few hundred bytes.
const MAX_SPEC_BYTES: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read the VM's description {path}: {source}", path = path.display())]
    Spec { path: PathBuf, source: std::io::Error },
    #[error("there is no guest channel: {0}")]
    GuestChannel(std::io::Error),
    #[error("cannot make the network link: {0}")]
    Link(std::io::Error),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

impl Failure {
    fn unrestorable(&self) -> Option<Unrestorable> {
        match self {
            Self::Driver(DriverError::Qemu(error)) => error.unrestorable(),
            Self::Driver(DriverError::Snapshot(_)) => Some(Unrestorable::Damaged),
            Self::Driver(DriverError::SnapshotNeeds(_) | DriverError::SnapshotElsewhere) => Some(Unrestorable::Unfit),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Driver(error) => error.hint(),
            Self::GuestChannel(_) => Some("iii-vm is started by the daemon, not by hand".to_owned()),
            Self::Spec { .. } | Self::Link(_) | Self::Network(_) => None,
        }
    }
}

fn main() {
    let since = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag] if flag == "--probe" => probe::here(),
        [flag, kit, folder] if flag == "--choice" => choice::print(Path::new(kit), Path::new(folder)),
        [flag, kit, folder] if flag == "--drivers" => choice::print_drivers(Path::new(kit), Path::new(folder)),
        [flag, kit] if flag == "--kit" => choice::check_kit(Path::new(kit)),
        [flag, kit] if flag == "--qemu" => choice::print_qemu(Path::new(kit)),
        [flag, spec, ends] if flag == vmm_krun::ENTER_FLAG => enter(Path::new(spec), ends),
        [path] if !path.starts_with('-') => run(Path::new(path), since),
        _ => {
            eprintln!(
                "usage: iii-vm SPEC.json | iii-vm --probe | iii-vm --choice|--drivers KIT TEMPLATES | iii-vm --kit|--qemu KIT"
            );
            std::process::exit(2);
        }
    }
}

fn run(spec: &Path, since: Instant) -> ! {
    let exit = match start(spec, since) {
        Ok((running, commands)) => running.wait(commands, &mut |event| report::report(&event)),
        Err(failure) => {
            let (reason, hint) = (failure.to_string(), failure.hint());
            match failure.unrestorable() {
                Some(kind) => VmExit::Unrestorable { kind, reason, hint },
                None => VmExit::Failed { reason, hint, console_tail: String::new() },
            }
        }
    };
    report::end(exit)
}

/// The VM's own process under libkrun, which ends with the guest.
fn enter(spec: &Path, ends: &str) -> ! {
    let entered = read_spec(spec).map_err(|failure| failure.to_string()).and_then(|spec| {
        let kit = Kit::open(&spec.kit_dir).map_err(|error| error.to_string())?;
        Err::<(), _>(vmm_krun::enter(&spec, &kit, ends).to_string())
    });
    eprintln!("iii-vm: {}", entered.unwrap_err());
    std::process::exit(1)
}

/// Runs on the main thread: the VM's process is killed when the thread that started it ends.
fn start(spec: &Path, since: Instant) -> Result<(Running, Receiver<VmCommand>), Failure> {
    let guest = UnixStream::from(sys::guest_channel().map_err(Failure::GuestChannel)?);
    log::init();
    let commands = commands::follow();
    let spec = read_spec(spec)?;
    let driver = Driver::prepare(&spec)?;
    let (link, net) = UnixStream::pair().map_err(Failure::Link)?;
    network::serve(link, spec.network.as_ref())?;
    let running = driver.start(Wires { guest, net }, since, &mut |event| report::report(&event))?;
    Ok((running, commands))
}

fn read_spec(path: &Path) -> Result<VmSpec, Failure> {
    let failed = |source| Failure::Spec { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_SPEC_BYTES).read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| failed(error.into()))
}
