//! Turns a guest that starts from another's memory into itself.

use guest_protocol::{GuestFailure, Origin, Renewal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::adopt::{set_clock, step, tolerate};
use crate::{names, network, sys};

/// Where programs read that they go on in a child, and in which.
const EVENT: &str = "/run/iii/fork.json";

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
    step("tell of the fork", || names::replace(EVENT, &event(&renewal.origin, generation)))?;
    tell_programs();
    Ok(boot_id)
}

fn event(origin: &Origin, generation: u64) -> String {
    let quoted = |text: &str| serde_json::Value::from(text);
    let (id, parent, forked_at) = (quoted(&origin.id), quoted(&origin.parent), origin.forked_at_unix_ns / 1_000_000);
    format!("{{\"id\":{id},\"parent\":{parent},\"forked_at\":{forked_at},\"generation\":{generation}}}\n")
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
