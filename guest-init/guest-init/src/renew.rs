//! Turns a guest that starts from another's memory into itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use guest_protocol::{GuestFailure, Origin, Renewal};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, linkat};

use crate::adopt::{set_clock, step, tolerate};
use crate::sys::{self, Page};
use crate::wire::lock;
use crate::{names, network};

/// Of the event's file, the end of its line included.
const EVENT_BYTES: usize = 256;

/// Where programs read that they go on in a child, and in which.
const EVENT: &str = "/run/iii/fork.json";

/// A file without a name, made before there is a child. To write to it and to give it its name is a third of what a child
/// would have to do, and its emulator to translate, for a new file in the old one's place.
struct Unnamed {
    file: File,
    page: Page,
}

static NEXT_EVENT: Mutex<Option<Unnamed>> = Mutex::new(None);

/// Needs the folder that [`EVENT`] is in.
pub(crate) fn prepare() -> io::Result<()> {
    let folder = Path::new(EVENT).parent().unwrap_or(Path::new("/"));
    let file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o644).open(folder)?;
    file.set_len(EVENT_BYTES as u64)?;
    let mut page = Page::of(&file)?;
    page.write(padded("").as_bytes());
    *lock(&NEXT_EVENT) = Some(Unnamed { file, page });
    Ok(())
}

/// Entropy first, as when adopted. Programs run all the while, and are told last, when everything else is true. Returns
/// the boot id.
pub(crate) fn renew(renewal: &Renewal, generation: u64) -> Result<String, GuestFailure> {
    step("seed the random source", || sys::seed_random(&renewal.entropy))?;
    set_clock(renewal.unix_time_ns)?;
    step("set the host name", || Ok(nix::unistd::sethostname(&renewal.hostname)?))?;
    match &renewal.network {
        Some(network) => network::configure(network)?,
        None => step("leave the network", network::leave)?,
    }
    // What runs already does not fail for lack of these.
    tolerate("write the identity", names::write(&renewal.hostname, &renewal.machine_id, renewal.network.as_ref()));
    let boot_id = step("change the boot id", names::change_boot_id)?;
    step("tell of the fork", || publish(&padded(&event(&renewal.origin, generation))))?;
    tell_programs();
    Ok(boot_id)
}

fn event(origin: &Origin, generation: u64) -> String {
    let quoted = |text: &str| serde_json::Value::from(text);
    let (id, parent, forked_at) = (quoted(&origin.id), quoted(&origin.parent), origin.forked_at_unix_ns / 1_000_000);
    format!("{{\"id\":{id},\"parent\":{parent},\"forked_at\":{forked_at},\"generation\":{generation}}}\n")
}

/// JSON may end in blanks; so every event is as long as the file that was prepared for it, unless its names are very long.
fn padded(event: &str) -> String {
    format!("{:<1$}\n", event.trim_end(), EVENT_BYTES - 1)
}

fn publish(event: &str) -> io::Result<()> {
    // Once: it is the file that programs read, from then on.
    if let Some(Unnamed { file, mut page }) = lock(&NEXT_EVENT).take()
        && event.len() == EVENT_BYTES
    {
        page.write(event.as_bytes());
        if linkat(&file, "", AT_FDCWD, EVENT, AtFlags::AT_EMPTY_PATH).is_ok() {
            return Ok(());
        }
    }
    names::replace(EVENT, event)
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
        let line = padded(wanted);
        assert_eq!((line.len(), line.trim_end()), (EVENT_BYTES, wanted.trim_end()));
    }
}
