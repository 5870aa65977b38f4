//! The host's end of the guest's network device.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::thread;

use vmm::NetworkSpec;

/// Serves the link on a thread of its own until QEMU closes it.
pub(crate) fn serve(link: UnixStream, network: Option<&NetworkSpec>) -> io::Result<()> {
    match network {
        Some(_) | None => spawn("no-network", move || drain(link)),
    }
}

/// The device exists, and nobody is there: frames are read, so that the guest's queue never fills, and dropped.
fn drain(mut link: UnixStream) {
    let mut buffer = [0u8; 16 * 1024];
    while matches!(link.read(&mut buffer), Ok(1..)) {}
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
