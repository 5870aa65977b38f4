//! The guest's interfaces.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_protocol::{ErrorCode, GuestFailure, Network};

use crate::sys::Interface;
use crate::wire::{failure, io_failure};

/// Whether `eth0` has ever had an address from us.
static CONFIGURED: AtomicBool = AtomicBool::new(false);

pub(crate) fn loopback_up() -> io::Result<()> {
    Interface::open("lo")?.up()
}

/// The relay carries no IPv6: an address of its own making would lead nowhere, and each change of the interface would
/// announce it. A machine without an interface, or a kernel without IPv6, has nothing to leave out.
pub(crate) fn without_ipv6() -> io::Result<()> {
    match fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Gives `eth0` its addresses. A template's interface is down and has another MAC. A child's is up with its parent's
/// address: taken down, it loses every route and neighbour, and the address below takes the place of the old one.
pub(crate) fn configure(network: &Network) -> Result<(), GuestFailure> {
    let mac = parse_mac(&network.mac)
        .ok_or_else(|| failure(ErrorCode::Invalid, format!("`{}` is no MAC address", network.mac)))?;
    CONFIGURED.store(true, Ordering::Relaxed);
    let step = |what: &'static str| move |error: io::Error| io_failure(format!("eth0: {what}"), &error);
    let mut interface = Interface::open("eth0").map_err(step("open"))?;
    interface.down().map_err(step("take down"))?;
    interface.set_mac(mac).map_err(step("set the MAC address"))?;
    interface.set_mtu(network.mtu).map_err(step("set the MTU"))?;
    interface.set_address(network.address, network.prefix_len).map_err(step("set the address"))?;
    interface.up().map_err(step("bring up"))?;
    interface.default_route(network.gateway).map_err(step("set the default route"))
}

/// Leaves `eth0`, if it was ever configured, without address and link.
pub(crate) fn leave() -> io::Result<()> {
    if !CONFIGURED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut interface = Interface::open("eth0")?;
    match interface.down().and_then(|()| interface.clear_address()) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        left => left,
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_six_hexadecimal_bytes() {
        assert_eq!(parse_mac("02:6d:73:00:0a:ff"), Some([2, 0x6d, 0x73, 0, 10, 255]));
        for bad in ["", "02:6d:73:00:0a", "02:6d:73:00:0a:ff:00", "02:6d:73:00:0a:zz"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
