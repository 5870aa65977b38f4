//! The one descriptor that arrives by number, and the child's side of a fork.
#![expect(unsafe_code, reason = "a descriptor that the caller hands over by number, and pre_exec")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{SFlag, fstat};

/// Where the daemon puts the guest channel.
const GUEST_CHANNEL_FD: i32 = 3;

/// The guest channel: a socket on descriptor 3, as a copy that QEMU does not inherit by accident.
/// Descriptor 3 itself is closed.
pub(crate) fn guest_channel() -> io::Result<OwnedFd> {
    // SAFETY: nothing else in this process uses descriptor 3 yet: this is called before anything is opened.
    let borrowed = unsafe { BorrowedFd::borrow_raw(GUEST_CHANNEL_FD) };
    let is_socket =
        fstat(borrowed).is_ok_and(|about| SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK);
    if !is_socket {
        return Err(io::Error::new(io::ErrorKind::NotFound, "descriptor 3 is no socket"));
    }
    let number = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    nix::unistd::close(GUEST_CHANNEL_FD)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}

/// Has the kernel kill the child when it has used the processor for `cpu_seconds`, and on Linux when the spawning thread
/// ends.
pub(crate) fn bound_child(command: &mut Command, cpu_seconds: u64) {
    let parent = nix::unistd::getpid();
    // SAFETY: the closure makes system calls only (async-signal-safe) and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            setrlimit(Resource::RLIMIT_CPU, cpu_seconds, cpu_seconds)?;
            // The parent may have died already.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, ExitStatus};
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sys::signal::Signal;

    use super::*;

    /// The end of a child that should not need to be killed by us.
    fn ended(mut child: Child) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("it is still there");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_bound_child_goes_with_the_thread_that_started_it() {
        let spawning = thread::spawn(|| {
            let mut command = Command::new("sleep");
            bound_child(command.arg("60"), 5);
            command.spawn().unwrap()
        });
        assert_eq!(ended(spawning.join().unwrap()).signal(), Some(Signal::SIGKILL as i32));
    }

    #[test]
    fn a_bound_child_that_spins_ends() {
        let mut command = Command::new("sh");
        bound_child(command.args(["-c", "while :; do :; done"]), 1);
        assert!(ended(command.spawn().unwrap()).signal().is_some());
    }
}
