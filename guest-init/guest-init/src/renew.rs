//! Turns a guest that starts from another's memory into itself.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use guest_protocol::{GuestFailure, Origin, Renewal};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::adopt::{set_clock, step, tolerate, write_names};
use crate::{network, sys};

/// Where programs read that they go on in a child, and in which.
const EVENT: &str = "/run/iii/fork.json";

/// The kernel's boot id, and what lies over it in a child: the kernel itself makes one per boot and lets nobody change it.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID: &str = "/run/iii/boot_id";

/// Entropy first, as when adopted. Programs run all the while, and are told last, when everything else is true.
pub(crate) fn renew(renewal: &Renewal, generation: u64) -> Result<(), GuestFailure> {
    step("seed the random source", || sys::seed_random(&renewal.entropy))?;
    set_clock(renewal.unix_time_ns)?;
    step("set the host name", || Ok(nix::unistd::sethostname(&renewal.hostname)?))?;
    match &renewal.network {
        Some(network) => network::configure(network)?,
        None => step("leave the network", network::leave)?,
    }
    // The image may have odd things in /etc; what runs already does not fail for lack of these.
    tolerate("write the identity", write_names(&renewal.hostname, &renewal.machine_id, renewal.network.as_ref()));
    step("change the boot id", change_boot_id)?;
    step("tell of the fork", || network::replace(EVENT, &event(&renewal.origin, generation)))?;
    tell_programs();
    Ok(())
}

fn change_boot_id() -> io::Result<()> {
    fs::create_dir_all("/run/iii")?;
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    // Written over, not truncated: where an earlier fork has mounted this file, a reader sees one id or the other.
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(BOOT_ID)?;
    file.write_all(id.as_bytes())?;
    if fs::read_to_string(KERNEL_BOOT_ID)? != id {
        mount(Some(BOOT_ID), KERNEL_BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

fn event(origin: &Origin, generation: u64) -> String {
    let text = serde_json::json!({
        "id": origin.id,
        "parent": origin.parent,
        "forked_at": origin.forked_at_unix_ns / 1_000_000,
        "generation": generation,
    });
    format!("{text}\n")
}

/// SIGURG, since it is ignored by who has not asked for it: a program that knows nothing of forks goes on undisturbed. To
/// everybody at once, which leaves out this process; kernel threads take no signals.
fn tell_programs() {
    // Fails only where there is no program.
    let _ = kill(Pid::from_raw(-1), Signal::SIGURG);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_says_who_it_is_whose_child_it_is_and_since_when_in_milliseconds() {
        let origin =
            Origin { id: "b".into(), parent: "a \"quoted\"".into(), forked_at_unix_ns: 1_700_000_000_123_456_789 };
        let wanted = "{\"id\":\"b\",\"parent\":\"a \\\"quoted\\\"\",\"forked_at\":1700000000123,\"generation\":2}\n";
        assert_eq!(event(&origin, 2), wanted);
    }
}
