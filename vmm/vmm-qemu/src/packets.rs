//! A nursery's socket: packets with descriptors, and a sender that the kernel names.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, bind, connect, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

/// What a nursery takes to fork. A loaded machine is slow, and then restoring is no faster.
const BIRTH_LIMIT_MS: u16 = 30_000;

/// A socket of this name in `folder` that others connect to.
pub(crate) fn listen_in(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let listener = packets()?;
    let folder = File::open(folder)?;
    bind(listener.as_raw_fd(), &address(&folder, name)?)?;
    listen(&listener, Backlog::MAXCONN)?;
    Ok(listener)
}

/// Sends our process id and `ends` to who listens there. Returns the connection and the process that answered.
pub(crate) fn request(folder: &Path, name: &str, ends: &[RawFd]) -> io::Result<(OwnedFd, u32)> {
    let connection = packets()?;
    setsockopt(&connection, sockopt::PassCred, &true)?;
    let folder = File::open(folder)?;
    connect(connection.as_raw_fd(), &address(&folder, name)?)?;
    let pid = std::process::id().to_ne_bytes();
    let rights = [ControlMessage::ScmRights(ends)];
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&pid)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut waiting = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, PollTimeout::from(BIRTH_LIMIT_MS))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let sender = sender(&connection)?;
    Ok((connection, sender))
}

fn sender(connection: &OwnedFd) -> io::Result<u32> {
    let mut room = nix::cmsg_space!(UnixCredentials);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let pid = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(sender) => u32::try_from(sender.pid()).ok().filter(|pid| *pid > 0),
        _ => None,
    });
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the sender is not of this process namespace"))
}

fn packets() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Through the open folder: an address has 107 bytes for a name, and the folder's may be longer.
fn address(folder: &File, name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).as_str())?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use nix::sys::socket::{accept, send};

    use super::*;

    #[test]
    fn a_request_carries_descriptors_and_its_answer_the_sender() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("x".repeat(200));
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(request(&folder, "n", &[]).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = listen_in(&folder, "n").unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let other = thread::spawn(move || {
            let connection = accept(listener.as_raw_fd()).unwrap();
            let mut room = nix::cmsg_space!([RawFd; 2]);
            let mut pid = [0; 4];
            let mut parts = [IoSliceMut::new(&mut pid)];
            let received = recvmsg::<()>(connection, &mut parts, Some(&mut room), MsgFlags::empty()).unwrap();
            let ends = received.cmsgs().unwrap().find_map(|message| match message {
                ControlMessageOwned::ScmRights(ends) => Some(ends),
                _ => None,
            });
            let sent = send(connection, b"c", MsgFlags::empty());
            (ends.unwrap(), u32::from_ne_bytes(pid), sent.unwrap())
        });
        let (_connection, sender) = request(&folder, "n", &[write.as_raw_fd()]).unwrap();
        let (ends, pid, _) = other.join().unwrap();
        assert_eq!((ends.len(), pid, sender), (1, std::process::id(), std::process::id()));
        drop(write);
        nix::unistd::close(ends[0]).unwrap();
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }
}
