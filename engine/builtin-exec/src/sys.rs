//! How a command's process begins.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::socket::{MsgFlags, send};
use nix::unistd::{getpid, setsid};

/// A guard that has gone is an error, not a signal; where there is no such flag, the signal ends the process.
#[cfg(target_os = "linux")]
const NO_SIGNAL: MsgFlags = MsgFlags::MSG_NOSIGNAL;
#[cfg(not(target_os = "linux"))]
const NO_SIGNAL: MsgFlags = MsgFlags::empty();

/// Gives the process a session of its own, and tells the guard its number before anything of it runs.
pub(crate) fn begin_guarded(command: &mut Command, guard: OwnedFd) {
    // SAFETY: the closure runs in the forked child, makes three system calls, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            let mut line = [0; 12];
            let line = decimal_line(getpid().as_raw().unsigned_abs(), &mut line);
            let sent = send(guard.as_raw_fd(), line, NO_SIGNAL)?;
            if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        });
    }
}

/// A session of its own: signals of a terminal do not reach it.
pub(crate) fn begin_apart(command: &mut Command) {
    // SAFETY: the closure runs in the forked child and makes one system call; it allocates nothing.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
}

/// The number and a line's end, without memory from the heap: a forked child of many threads has none.
fn decimal_line(mut number: u32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut start = buffer.len() - 1;
    buffer[start] = b'\n';
    loop {
        start -= 1;
        // Below ten.
        buffer[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_everywhere() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            assert_eq!(decimal_line(number, &mut [0; 12]), format!("{number}\n").as_bytes());
        }
    }
}
