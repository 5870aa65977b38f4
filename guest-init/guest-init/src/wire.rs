//! Frames in and out of the channel, and what belongs to one request: its credit, its input, its orders.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_protocol::{
    Control, DATA_CHUNK_BYTES, ErrorCode, GuestFailure, Header, INITIAL_CREDIT, Kind, MAX_BODY_BYTES, Reply, StreamId,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EventFd;

/// A lock that a panicking request has left behind is still good: every critical section here is a few assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The channel's two directions and the streams that are open on it.
pub(crate) struct Wire {
    writer: Mutex<File>,
    streams: Mutex<HashMap<StreamId, Arc<Stream>>>,
}

/// One open request.
pub(crate) struct Stream {
    id: StreamId,
    wire: Arc<Wire>,
    state: Mutex<State>,
    /// Readable when `state` has changed; requests that poll descriptors poll this one too.
    wake: EventFd,
}

#[derive(Default)]
struct State {
    /// Bytes of output the host has room for.
    credit: u64,
    input: VecDeque<Vec<u8>>,
    input_ended: bool,
    orders: VecDeque<Control>,
    cancelled: bool,
    /// Exit statuses that the reaper has delivered.
    exits: VecDeque<i32>,
}

impl Wire {
    pub(crate) fn new(writer: File) -> Arc<Self> {
        Arc::new(Self { writer: Mutex::new(writer), streams: Mutex::new(HashMap::new()) })
    }

    pub(crate) fn send(&self, stream: StreamId, kind: Kind, last: bool, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(Header::BYTES + body.len());
        frame.extend_from_slice(&Header { length, stream, kind, last }.to_bytes());
        frame.extend_from_slice(body);
        let mut writer = lock(&self.writer);
        write_all(&mut writer, &frame)
    }

    pub(crate) fn open(self: &Arc<Self>, id: StreamId) -> io::Result<Arc<Stream>> {
        let state = State { credit: u64::from(INITIAL_CREDIT), ..State::default() };
        let wake = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK)?;
        let stream = Arc::new(Stream { id, wire: Arc::clone(self), state: Mutex::new(state), wake });
        lock(&self.streams).insert(id, Arc::clone(&stream));
        Ok(stream)
    }

    pub(crate) fn find(&self, id: StreamId) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&id).cloned()
    }

    /// Nobody reads any more: whatever runs is to end.
    pub(crate) fn cancel_all(&self) {
        for stream in lock(&self.streams).values() {
            stream.order(Control::Cancel);
        }
    }
}

/// As `write_all`, for a port that may be non-blocking or whose host end is away for a moment.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for one of `descriptors`; `None` waits for ever.
pub(crate) fn wait(descriptors: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<()> {
    let timeout = match patience {
        None => PollTimeout::NONE,
        // Rounded up: a wait of under a millisecond must not become a loop.
        Some(patience) => i32::try_from(patience.as_millis() + 1)
            .ok()
            .and_then(|milliseconds| PollTimeout::try_from(milliseconds).ok())
            .unwrap_or(PollTimeout::MAX),
    };
    match nix::poll::poll(descriptors, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Stream {
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes `wake` quiet; call before looking at the state, never after.
    pub(crate) fn quiet(&self) {
        let _ = self.wake.read();
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        let _ = self.wake.write(1);
    }

    pub(crate) fn grant(&self, bytes: u32) {
        self.change(|state| state.credit = state.credit.saturating_add(u64::from(bytes)));
    }

    pub(crate) fn push_input(&self, bytes: Vec<u8>, last: bool) {
        self.change(|state| {
            if !bytes.is_empty() {
                state.input.push_back(bytes);
            }
            state.input_ended |= last;
        });
    }

    pub(crate) fn order(&self, order: Control) {
        self.change(|state| {
            state.cancelled |= order == Control::Cancel;
            state.orders.push_back(order);
        });
    }

    pub(crate) fn exited(&self, status: i32) {
        self.change(|state| state.exits.push_back(status));
    }

    pub(crate) fn next_exit(&self) -> Option<i32> {
        lock(&self.state).exits.pop_front()
    }

    pub(crate) fn next_order(&self) -> Option<Control> {
        lock(&self.state).orders.pop_front()
    }

    pub(crate) fn cancelled(&self) -> bool {
        lock(&self.state).cancelled
    }

    /// Room for output, at most one frame's worth.
    pub(crate) fn room(&self) -> usize {
        usize::try_from(lock(&self.state).credit).unwrap_or(usize::MAX).min(DATA_CHUNK_BYTES)
    }

    /// The next piece of input, if one is there; its bytes are granted back to the host.
    pub(crate) fn take_input(&self) -> Option<Vec<u8>> {
        let bytes = lock(&self.state).input.pop_front()?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let _ = self.wire.send(self.id, Kind::Credit, false, &length.to_le_bytes());
        Some(bytes)
    }

    /// Whether the last piece of input has been taken.
    pub(crate) fn input_ended(&self) -> bool {
        let state = lock(&self.state);
        state.input_ended && state.input.is_empty()
    }

    /// Sends output for which there is room (`bytes` is at most what [`Stream::room`] said).
    pub(crate) fn output(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            state.credit = state.credit.saturating_sub(bytes.len() as u64);
        }
        self.wire.send(self.id, kind, false, bytes)
    }

    /// As [`Stream::output`], waiting for room as long as it takes.
    pub(crate) fn output_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.quiet();
            if self.cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let room = self.room().min(bytes.len());
            if room == 0 {
                wait(&mut [PollFd::new(self.wake(), PollFlags::POLLIN)], None)?;
                continue;
            }
            self.output(Kind::Output, &bytes[..room])?;
            bytes = &bytes[room..];
        }
        Ok(())
    }

    pub(crate) fn reply(&self, reply: &Reply, last: bool) {
        let mut body = serde_json::to_vec(reply).unwrap_or_default();
        if body.len() > MAX_BODY_BYTES as usize {
            // The host would end the connection over it.
            let failed = Reply::Failed(failure(ErrorCode::Io, "the answer is too long"));
            body = serde_json::to_vec(&failed).unwrap_or_default();
        }
        if last {
            lock(&self.wire.streams).remove(&self.id);
        }
        // A channel that cannot be written to has lost its host; the reader finds out.
        let _ = self.wire.send(self.id, Kind::Reply, last, &body);
    }

    /// Closes the stream.
    pub(crate) fn finish(&self, result: Result<Reply, GuestFailure>) {
        self.reply(&result.unwrap_or_else(Reply::Failed), true);
    }
}

/// The input of a stream as a reader: blocks, gives up after `IDLE` without a byte.
pub(crate) struct InputReader<'a> {
    stream: &'a Stream,
    current: Vec<u8>,
    taken: usize,
}

/// A host that says nothing for this long in the middle of an upload has gone away.
const IDLE: Duration = Duration::from_secs(30);

impl<'a> InputReader<'a> {
    pub(crate) fn new(stream: &'a Stream) -> Self {
        Self { stream, current: Vec::new(), taken: 0 }
    }
}

impl Read for InputReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut waited = false;
        while self.taken == self.current.len() {
            self.stream.quiet();
            if self.stream.cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the host gave up"));
            }
            if let Some(next) = self.stream.take_input() {
                self.current = next;
                self.taken = 0;
            } else if self.stream.input_ended() {
                return Ok(0);
            } else if waited {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "no input for 30 s"));
            } else {
                let mut descriptors = [PollFd::new(self.stream.wake(), PollFlags::POLLIN)];
                wait(&mut descriptors, Some(IDLE))?;
                waited = !descriptors[0].any().unwrap_or(false);
            }
        }
        let length = buffer.len().min(self.current.len() - self.taken);
        buffer[..length].copy_from_slice(&self.current[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

/// A failure in the guest's words.
pub(crate) fn failure(code: ErrorCode, message: impl Into<String>) -> GuestFailure {
    GuestFailure { code, message: message.into() }
}

/// The kind of failure an error of the kernel is, with what was attempted.
pub(crate) fn io_failure(what: impl std::fmt::Display, error: &io::Error) -> GuestFailure {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => ErrorCode::NotFound,
        Some(libc::ENOTDIR | libc::EISDIR) => ErrorCode::WrongType,
        Some(libc::EEXIST) => ErrorCode::AlreadyExists,
        Some(libc::ENOTEMPTY) => ErrorCode::NotEmpty,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ErrorCode::Permission,
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::NoSpace,
        _ if error.kind() == io::ErrorKind::ConnectionAborted => ErrorCode::Aborted,
        _ => ErrorCode::Io,
    };
    failure(code, format!("{what}: {error}"))
}
