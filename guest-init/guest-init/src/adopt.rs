//! Turns the generic, waiting guest into a particular one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use guest_protocol::{GuestFailure, Identity};
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::users::Account;
use crate::wire::io_failure;
use crate::{boot, names, network, root, sys};

/// Where the host's certificate authorities are in the guest.
const CA_BUNDLE: &str = "/run/iii/ca-certificates.crt";

/// Where Debian's family keeps its bundle, and where others look for it.
const IMAGE_CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Variables by which common programs find a bundle that is not the one they ship.
const CA_VARIABLES: [&str; 5] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"];

/// Where programs are looked for, unless the image or the launcher says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Entropy first: everything after it may draw random numbers, and a clone starts with its siblings' state. Returns the
/// boot id. Whatever needs no identity is done before `Hello` (`boot`): a clone finds it done.
pub(crate) fn adopt(identity: &Identity) -> Result<String, GuestFailure> {
    step("seed the random source", || sys::seed_random(&identity.entropy))?;
    set_clock(identity.unix_time_ns)?;
    step("set the host name", || Ok(nix::unistd::sethostname(&identity.hostname)?))?;
    if let Some(network) = &identity.network {
        network::configure(network)?;
    }
    root::enter(&identity.root, identity.scratch.as_ref(), identity.scratch_is_kept)?;
    if let Some(bytes) = identity.memory_limit_bytes {
        tolerate("limit the memory", root::limit_memory(bytes));
    }
    let names = names::write(&identity.hostname, &identity.machine_id, identity.network.as_ref());
    tolerate("write the identity", names);
    names::show();
    if let Some(bundle) = &identity.ca_bundle_pem {
        tolerate("install the certificate authorities", install_authorities(bundle));
    }
    step("change the boot id", names::change_boot_id)
}

pub(crate) fn set_clock(unix_time_ns: u64) -> Result<(), GuestFailure> {
    step("set the clock", || {
        let time = std::time::Duration::from_nanos(unix_time_ns);
        Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))?)
    })
}

pub(crate) fn step<T>(what: &str, act: impl FnOnce() -> io::Result<T>) -> Result<T, GuestFailure> {
    act().map_err(|error| io_failure(what, &error))
}

pub(crate) fn tolerate(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        boot::console(&format!("{what}: {error}"));
    }
}

fn install_authorities(bundle: &str) -> io::Result<()> {
    fs::create_dir_all("/run/iii")?;
    fs::write(CA_BUNDLE, bundle)?;
    if !Path::new(IMAGE_CA_BUNDLE).exists() {
        fs::create_dir_all("/etc/ssl/certs")?;
        fs::write(IMAGE_CA_BUNDLE, "")?;
    }
    Ok(mount(Some(CA_BUNDLE), IMAGE_CA_BUNDLE, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// The base environment: defaults, then what the identity says.
pub(crate) fn environment(identity: &Identity, account: &Account, in_guest: bool) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> =
        [("PATH", DEFAULT_PATH), ("HOME", account.home.as_str()), ("LANG", "C.UTF-8")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
    if in_guest && identity.ca_bundle_pem.is_some() {
        env.extend(CA_VARIABLES.map(|name| (name.to_owned(), CA_BUNDLE.to_owned())));
    }
    env.extend(identity.env.clone());
    env
}
