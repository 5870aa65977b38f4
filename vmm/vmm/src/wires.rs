//! The two streams between a VM and its host.

use std::os::unix::net::UnixStream;

/// The machine's ends, for a driver.
#[derive(Debug)]
pub struct Wires {
    /// The virtio-serial port's bytes; the other end is the daemon's.
    pub guest: UnixStream,
    /// Ethernet frames behind a 4-byte big-endian length; the other end is the relay's.
    pub net: UnixStream,
}

impl Wires {
    /// Name of the virtio-serial port, which init looks for.
    pub const PORT_NAME: &str = "iii.guest";

    /// What the network device is called until its guest adopts an address of its own.
    pub const BOOT_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x00, 0x00, 0x02];
}
