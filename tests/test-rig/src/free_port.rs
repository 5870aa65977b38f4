//! Ports of loopback for servers that cannot choose one themselves and say which.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_WRLCK, SEEK_SET, c_short, flock};
use nix::unistd::geteuid;

/// Below those that Linux gives to whoever asks for any port (`ip_local_port_range`, 32768 and up unless it is set): no
/// connection and no other listener comes upon one of these between the choice and the use of it.
const PORTS: Range<u16> = 12_000..32_000;

/// The locks of this process, one for each port it was given.
static OURS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port of loopback on which nobody listens, and which no other test is given while this process lives.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let count = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() * 61 % u32::from(count)).expect("less than the count");
    let port = (0..count).map(|step| PORTS.start + (first + step) % count).find_map(taken_for_us);
    port.unwrap_or_else(|| panic!("no port of {PORTS:?} is free"))
}

/// The port, if it was free and now is ours.
fn taken_for_us(port: u16) -> Option<u16> {
    // Each user's own: nobody else may write to it.
    let path = std::env::temp_dir().join(format!("iii-test-ports-{}", geteuid()));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).expect("the file of locks");
    // One byte of the file stands for each port. The lock belongs to the open file, and so ends with this process.
    let lock = flock {
        l_type: F_WRLCK as c_short,
        l_whence: SEEK_SET as c_short,
        l_start: i64::from(port),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return None,
        Err(error) => panic!("a lock on port {port}: {error}"),
    }
    TcpListener::bind(("127.0.0.1", port)).ok()?;
    OURS.lock().expect("nobody panics here").push(file);
    Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_and_none_that_is_in_use() {
        let first = free_port();
        let second = free_port();
        assert_ne!(first, second);
        assert_eq!(taken_for_us(first), None, "given");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let in_use = listener.local_addr().expect("an address").port();
        assert_eq!(taken_for_us(in_use), None, "in use");
    }
}
