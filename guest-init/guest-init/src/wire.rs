//! Frames in and out of the channel, and what belongs to one request: its credit, its input, its orders.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use guest_protocol::{
    Control, DATA_CHUNK_BYTES, ErrorCode, GuestFailure, Header, INITIAL_CREDIT, Kind, MAX_BODY_BYTES, Reply, StreamId,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A lock that a panicking request has left behind is still good: every critical section here is a few assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The channel's two directions and the streams that are open on it.
pub(crate) struct Wire {
    writer: Mutex<File>,
    /// How often this memory has got another host. Changes only under `writer`, so that a sender which waited there for
    /// its turn meets the new one.
    generation: AtomicU64,
    streams: Mutex<HashMap<StreamId, Arc<Stream>>>,
    /// Streams of earlier hosts, which no frame finds any more.
    orphans: Mutex<Vec<Weak<Stream>>>,
}

/// A channel at rest: nothing is half sent, and nothing begins to be sent before this is dropped.
pub(crate) struct Rest<'a> {
    wire: &'a Wire,
    _writer: MutexGuard<'a, File>,
}

/// One open request.
pub(crate) struct Stream {
    id: StreamId,
    /// Of the host that opened it.
    generation: u64,
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
        Arc::new(Self {
            writer: Mutex::new(writer),
            generation: AtomicU64::new(0),
            streams: Mutex::new(HashMap::new()),
            orphans: Mutex::new(Vec::new()),
        })
    }

    /// First words of a guest; everything later belongs to a stream.
    pub(crate) fn hello(&self, body: &[u8]) -> io::Result<()> {
        write_frame(&mut lock(&self.writer), StreamId(0), Kind::Hello, false, body)
    }

    /// Waits until the frame that is being sent is through, says `Frozen`, and lets nobody send after that.
    pub(crate) fn rest(&self) -> io::Result<Rest<'_>> {
        let mut writer = lock(&self.writer);
        write_frame(&mut writer, StreamId(0), Kind::Frozen, false, &[])?;
        Ok(Rest { wire: self, _writer: writer })
    }

    pub(crate) fn open(self: &Arc<Self>, id: StreamId) -> io::Result<Arc<Stream>> {
        let state = State { credit: u64::from(INITIAL_CREDIT), ..State::default() };
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let generation = self.generation.load(Ordering::Acquire);
        let stream = Arc::new(Stream { id, generation, wire: Arc::clone(self), state: Mutex::new(state), wake });
        lock(&self.streams).insert(id, Arc::clone(&stream));
        Ok(stream)
    }

    pub(crate) fn find(&self, id: StreamId) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&id).cloned()
    }

    /// Nobody reads any more: whatever runs is to end.
    pub(crate) fn cancel_all(&self) {
        let orphans: Vec<_> = lock(&self.orphans).iter().filter_map(Weak::upgrade).collect();
        for stream in lock(&self.streams).values().chain(&orphans) {
            stream.order(Control::Cancel);
        }
    }
}

impl Rest<'_> {
    /// The host that comes back is another one: this is a child. Whoever waits for the old one learns that it is gone.
    pub(crate) fn end_as_another(self) {
        self.wire.generation.fetch_add(1, Ordering::Release);
        let left: Vec<_> = lock(&self.wire.streams).drain().map(|(_, stream)| stream).collect();
        let mut orphans = lock(&self.wire.orphans);
        orphans.retain(|stream| stream.strong_count() > 0);
        for stream in left {
            stream.change(|_| {});
            orphans.push(Arc::downgrade(&stream));
        }
    }
}

fn write_frame(writer: &mut File, stream: StreamId, kind: Kind, last: bool, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(Header::BYTES + body.len());
    frame.extend_from_slice(&Header { length, stream, kind, last }.to_bytes());
    frame.extend_from_slice(body);
    write_all(writer, &frame)
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

    /// Sends a frame of this stream. What an orphan says goes nowhere, and succeeds.
    fn send(&self, kind: Kind, last: bool, body: &[u8]) -> io::Result<()> {
        let mut writer = lock(&self.wire.writer);
        // Looked at only now: the wait for the lock may have been the time in which the memory was saved.
        if self.orphaned() {
            return Ok(());
        }
        write_frame(&mut writer, self.id, kind, last, body)
    }

    /// Whether the host that opened it is gone while the guest goes on: nobody reads what it says, nothing more comes.
    pub(crate) fn orphaned(&self) -> bool {
        self.generation != self.wire.generation.load(Ordering::Acquire)
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

    /// Room for output, at most one frame's worth. An orphan always has it: its program must not stop for a lost reader.
    pub(crate) fn room(&self) -> usize {
        if self.orphaned() {
            return DATA_CHUNK_BYTES;
        }
        usize::try_from(lock(&self.state).credit).unwrap_or(usize::MAX).min(DATA_CHUNK_BYTES)
    }

    /// The next piece of input, if one is there; its bytes are granted back to the host.
    pub(crate) fn take_input(&self) -> Option<Vec<u8>> {
        let bytes = lock(&self.state).input.pop_front()?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let _ = self.send(Kind::Credit, false, &length.to_le_bytes());
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
        self.send(kind, false, bytes)
    }

    /// As [`Stream::output`], waiting for room as long as it takes. An orphan's content is for nobody: it ends.
    pub(crate) fn output_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.quiet();
            if self.cancelled() || self.orphaned() {
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
            self.leave();
        }
        // A channel that cannot be written to has lost its host; the reader finds out.
        let _ = self.send(Kind::Reply, last, &body);
    }

    /// Out of the table; a later stream of the same number stays.
    fn leave(&self) {
        let mut streams = lock(&self.wire.streams);
        if streams.get(&self.id).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), self)) {
            streams.remove(&self.id);
        }
    }

    /// Closes the stream.
    pub(crate) fn finish(&self, result: Result<Reply, GuestFailure>) {
        self.reply(&result.unwrap_or_else(Reply::Failed), true);
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn wire() -> (Arc<Wire>, UnixStream) {
        let (host, guest) = UnixStream::pair().expect("a socket pair");
        (Wire::new(File::from(OwnedFd::from(guest))), host)
    }

    /// What has been sent so far.
    fn kinds(mut host: UnixStream) -> Vec<Kind> {
        let mut bytes = Vec::new();
        host.set_nonblocking(true).expect("a socket");
        let end = host.read_to_end(&mut bytes).map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::WouldBlock));
        let mut left = bytes.as_slice();
        let mut kinds = Vec::new();
        while let Some((raw, rest)) = left.split_first_chunk() {
            let header = Header::parse(raw).expect("a header");
            kinds.push(header.kind);
            left = &rest[header.length as usize..];
        }
        kinds
    }

    #[test]
    fn what_waits_for_its_turn_at_a_rest_is_said_after_a_thaw_and_never_to_another_host() {
        for (reborn, wanted) in [(false, &[Kind::Frozen, Kind::Output][..]), (true, &[Kind::Frozen][..])] {
            let (wire, host) = wire();
            let stream = wire.open(StreamId(1)).expect("a stream");
            let rest = wire.rest().expect("a rest");
            let sender = std::thread::spawn(move || stream.output(Kind::Output, b"text"));
            if reborn {
                rest.end_as_another()
            } else {
                drop(rest)
            }
            sender.join().expect("no panic").expect("sent, or for nobody");
            assert_eq!(kinds(host), wanted);
        }
    }

    #[test]
    fn an_orphan_has_room_and_its_end_does_not_end_a_new_stream_of_its_number() {
        let (wire, host) = wire();
        let old = wire.open(StreamId(1)).expect("a stream");
        lock(&old.state).credit = 0;
        assert_eq!(old.room(), 0);
        let waits = {
            let old = Arc::clone(&old);
            std::thread::spawn(move || old.output_all(b"more").map_err(|error| error.kind()))
        };
        wire.rest().expect("a rest").end_as_another();
        assert_eq!(waits.join().expect("no panic"), Err(io::ErrorKind::ConnectionAborted));
        assert_eq!((old.room(), wire.find(StreamId(1)).is_none()), (DATA_CHUNK_BYTES, true));
        let new = wire.open(StreamId(1)).expect("a stream");
        old.finish(Ok(Reply::Done));
        assert!(wire.find(StreamId(1)).is_some_and(|found| Arc::ptr_eq(&found, &new)));
        new.finish(Ok(Reply::Done));
        assert!(wire.find(StreamId(1)).is_none());
        assert_eq!(kinds(host), [Kind::Frozen, Kind::Reply]);
    }

    #[test]
    fn the_end_of_the_channel_is_the_end_of_orphans_too() {
        let (wire, _host) = wire();
        let stream = wire.open(StreamId(1)).expect("a stream");
        wire.rest().expect("a rest").end_as_another();
        assert!(!stream.cancelled());
        wire.cancel_all();
        assert!(stream.cancelled());
    }
}
