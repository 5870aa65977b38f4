//! The input of a stream as a reader, for requests whose input is a file or an archive.

use std::io::{self, Read};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};

use crate::wire::{Stream, wait};

/// A host that says nothing for so many seconds in the middle of an upload has gone away. Each is waited for by itself: a
/// clock that jumps over the time in which the guest stood still ends one of them, not all.
const IDLE_SECONDS: u32 = 30;

/// Blocks; fails when the host has cancelled, fallen silent, or is another one now.
pub(crate) struct InputReader<'a> {
    stream: &'a Stream,
    current: Vec<u8>,
    taken: usize,
}

impl<'a> InputReader<'a> {
    pub(crate) fn new(stream: &'a Stream) -> Self {
        Self { stream, current: Vec::new(), taken: 0 }
    }
}

impl Read for InputReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let given_up = |why: String| Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        let mut silent = 0;
        while self.taken == self.current.len() {
            self.stream.quiet();
            // Asked before the input is: what came before the host changed is complete by then.
            let orphaned = self.stream.orphaned();
            if self.stream.cancelled() {
                return given_up("the host gave up".into());
            }
            if let Some(next) = self.stream.take_input() {
                self.current = next;
                self.taken = 0;
            } else if self.stream.input_ended() {
                return Ok(0);
            } else if orphaned {
                return given_up("the rest of it went to another guest".into());
            } else if silent == IDLE_SECONDS {
                return given_up(format!("no input for {IDLE_SECONDS} s"));
            } else {
                let mut descriptors = [PollFd::new(self.stream.wake(), PollFlags::POLLIN)];
                wait(&mut descriptors, Some(Duration::from_secs(1)))?;
                silent = if descriptors[0].any().unwrap_or(false) { 0 } else { silent + 1 };
            }
        }
        let length = buffer.len().min(self.current.len() - self.taken);
        buffer[..length].copy_from_slice(&self.current[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use guest_protocol::StreamId;

    use super::*;
    use crate::wire::Wire;

    #[test]
    fn an_orphans_upload_ends_unless_it_has_arrived_whole() {
        let (_host, guest) = UnixStream::pair().expect("a socket pair");
        let wire = Wire::new(File::from(OwnedFd::from(guest)));
        for whole in [false, true] {
            let stream = wire.open(StreamId(1)).expect("a stream");
            stream.push_input(b"all".to_vec(), whole);
            wire.rest().expect("a rest").end_as_another();
            let read = InputReader::new(&stream).read_to_end(&mut Vec::new());
            assert_eq!(read.map_err(|error| error.kind()), whole.then_some(3).ok_or(io::ErrorKind::ConnectionAborted));
        }
    }
}
