//! The KVM probe, in a process that may hang or crash without harm.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vmm_host::KvmVerdict;

use crate::sys;

/// The probe's guest needs microseconds; a host that cannot run it may spin for ever.
const LIMIT: Duration = Duration::from_secs(2);

/// Of the processor's time, should nobody be left to heed [`LIMIT`].
const LIMIT_CPU_S: u64 = 5;

/// `iii-vm --probe`: prints the verdict. With the environment variable below, runs the guest itself.
pub(crate) fn here() -> ! {
    let verdict = if std::env::var_os(INNER).is_some() { vmm_host::probe_in_this_process() } else { in_child() };
    match serde_json::to_string(&verdict) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("iii-vm: {error}"),
    }
    std::process::exit(i32::from(verdict != KvmVerdict::Works))
}

/// Marks the process in which the guest's instructions run.
const INNER: &str = "III_VM_PROBE_INNER";

/// Probes in a child process, for at most [`LIMIT`].
pub(crate) fn in_child() -> KvmVerdict {
    probe().unwrap_or_else(|error| KvmVerdict::NotRun { reason: error.to_string() })
}

fn probe() -> std::io::Result<KvmVerdict> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--probe").env(INNER, "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // We may be killed before we kill it.
    sys::bound_child(&mut command, LIMIT_CPU_S);
    let mut child = command.spawn()?;
    let Some(mut output) = child.stdout.take() else { return Err(std::io::ErrorKind::BrokenPipe.into()) };
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let _ = output.by_ref().take(64 * 1024).read_to_string(&mut text);
        let _ = answer.send(text);
    });
    let text = answered.recv_timeout(LIMIT);
    let _ = child.kill();
    let status = child.wait()?;
    let reason = match text {
        Ok(text) => match serde_json::from_str(text.trim()) {
            Ok(verdict) => return Ok(verdict),
            Err(_) => format!("it ended with {status}"),
        },
        Err(_) => format!("its guest did not end within {LIMIT:?}"),
    };
    Ok(KvmVerdict::NoAnswer { reason })
}
