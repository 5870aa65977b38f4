//! WebSocket frames as a server reads and writes them (RFC 6455, section 5), without IO.
//!
//! ```text
//!  0               1               2                    (8 more bytes of length, or 2, or none)
//!  ├ fin rsv opcode ┼ mask length7 ┼ length16 / length64 ┼ mask: 4 bytes ┤ payload, each byte xor mask[i % 4]
//! ```
//! Messages are read where they arrived: in the connection's buffer, which is small, or for a large frame in one of its own, of
//! which parts can be kept.
//!
//! Always true:
//! - No frame beyond [`MAX_FRAME_BYTES`], no message beyond [`MAX_MESSAGE_BYTES`]; either ends the connection.
//! - A text is UTF-8.
//! - Memory is touched as bytes arrive, whatever length a header announces.

use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::{BufMut, Bytes};
use engine_protocol::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Room for what a quiet worker sends.
pub(crate) const QUIET_BYTES: usize = 8 * 1024;

/// Room once a read has filled all there was; kept between messages. What is longer has a buffer of its own.
const BUSY_BYTES: usize = 64 * 1024;

/// Payload of a control frame, at most.
const MAX_CONTROL_BYTES: usize = 125;

/// Why the peer's bytes are no frames.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame with reserved bits or opcode: {0:#04x}")]
    Reserved(u8),
    #[error("frame without a mask")]
    Unmasked,
    #[error("control frame in pieces, or of {0} bytes")]
    Control(usize),
    #[error("frame or message of {0} bytes")]
    TooLong(u64),
    #[error("piece of a message out of place")]
    OutOfPlace,
    #[error("text that is not UTF-8")]
    NotUtf8,
}

/// What a peer has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Text {
        text: &'a str,
        /// The buffer of a large frame, which the text fills.
        frame: Option<&'a Bytes>,
    },
    Binary(&'a [u8]),
    /// To be answered with [`pong`].
    Ping(&'a [u8]),
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    last: bool,
    opcode: Opcode,
    mask: [u8; 4],
    /// Of the header itself.
    bytes: usize,
    payload_bytes: usize,
}

impl Header {
    /// `None`: the rest of it has not arrived.
    fn parse(raw: &[u8]) -> Result<Option<Self>, FrameError> {
        let &[first, second, ref rest @ ..] = raw else { return Ok(None) };
        let opcode = match first & 0x7f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return Err(FrameError::Reserved(first)),
        };
        if second & 0x80 == 0 {
            return Err(FrameError::Unmasked);
        }
        let (length, rest) = match second & 0x7f {
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let payload_bytes = usize::try_from(length).map_err(|_| FrameError::TooLong(length))?;
        let last = first & 0x80 != 0;
        if opcode.is_control() && (!last || payload_bytes > MAX_CONTROL_BYTES) {
            return Err(FrameError::Control(payload_bytes));
        }
        if payload_bytes > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let Some((mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(Some(Self { last, opcode, mask: *mask, bytes: raw.len() - rest.len(), payload_bytes }))
    }
}

/// `payload` begins where the mask does.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// What a connection has received and not yet said.
#[derive(Default)]
pub(crate) struct Incoming {
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`.
    start: usize,
    /// Whether the last read filled all there was.
    busy: bool,
    /// The frame that arrives, if it has a buffer of its own.
    large: Option<Large>,
    /// The large frame that the last event came from.
    whole: Bytes,
    /// A message that comes in pieces: what it is, and what there is of it.
    pieces: Option<Opcode>,
    assembled: Vec<u8>,
}

/// A frame with a buffer of its own.
struct Large {
    header: Header,
    /// What has arrived, without its mask.
    payload: Vec<u8>,
}

impl Large {
    fn missing(&self) -> usize {
        self.header.payload_bytes - self.payload.len()
    }

    /// Takes the mask off what lies behind the first `done` bytes.
    fn unmask_from(&mut self, done: usize) {
        let mut mask = self.header.mask;
        mask.rotate_left(done % 4);
        unmask(&mut self.payload[done..], mask);
    }
}

/// Where the payload of a frame is.
#[derive(Clone, Copy)]
enum Place {
    Buffer { from: usize, to: usize },
    Whole,
}

impl Place {
    fn of<'a>(self, buffer: &'a [u8], whole: &'a Bytes) -> &'a [u8] {
        match self {
            Self::Buffer { from, to } => buffer.get(from..to).unwrap_or_default(),
            Self::Whole => whole,
        }
    }
}

impl Incoming {
    /// The next message or control frame that is complete.
    ///
    /// # Errors
    /// [`FrameError`]: what follows cannot be told apart; the connection is to be ended.
    pub(crate) fn next(&mut self) -> Result<Option<Event<'_>>, FrameError> {
        self.whole = Bytes::new();
        loop {
            if self.pieces.is_none() {
                self.assembled = Vec::new();
            }
            let Some((header, place)) = self.next_frame()? else { return Ok(None) };
            match (header.opcode, self.pieces) {
                (Opcode::Pong, _) => {}
                (Opcode::Ping, _) => return Ok(Some(Event::Ping(place.of(&self.buffer, &self.whole)))),
                (Opcode::Close, _) => return Ok(Some(Event::Close)),
                (Opcode::Continuation, Some(kind)) => {
                    self.assemble(place)?;
                    if header.last {
                        self.pieces = None;
                        return message(kind, &self.assembled, None).map(Some);
                    }
                }
                (Opcode::Continuation, None) | (_, Some(_)) => return Err(FrameError::OutOfPlace),
                (kind, None) if header.last => {
                    let frame = matches!(place, Place::Whole).then_some(&self.whole);
                    return message(kind, place.of(&self.buffer, &self.whole), frame).map(Some);
                }
                (kind, None) => {
                    self.pieces = Some(kind);
                    self.assemble(place)?;
                }
            }
        }
    }

    /// The next frame that is complete, without its mask.
    fn next_frame(&mut self) -> Result<Option<(Header, Place)>, FrameError> {
        if let Some(large) = self.large.take_if(|large| large.missing() == 0) {
            self.whole = large.payload.into();
            return Ok(Some((large.header, Place::Whole)));
        }
        if self.large.is_some() {
            return Ok(None);
        }
        let arrived = self.buffer.get(self.start..).unwrap_or_default();
        let Some(header) = Header::parse(arrived)? else { return Ok(None) };
        let from = self.start + header.bytes;
        let to = from + header.payload_bytes;
        if let Some(payload) = self.buffer.get_mut(from..to) {
            self.start = to;
            unmask(payload, header.mask);
            return Ok(Some((header, Place::Buffer { from, to })));
        }
        if header.payload_bytes > BUSY_BYTES {
            let mut payload = Vec::with_capacity(header.payload_bytes);
            payload.extend_from_slice(self.buffer.get(from..).unwrap_or_default());
            self.start = self.buffer.len();
            let mut large = Large { header, payload };
            large.unmask_from(0);
            self.large = Some(large);
        }
        Ok(None)
    }

    fn assemble(&mut self, place: Place) -> Result<(), FrameError> {
        let piece = place.of(&self.buffer, &self.whole);
        let length = self.assembled.len() + piece.len();
        if length > MAX_MESSAGE_BYTES {
            return Err(FrameError::TooLong(length as u64));
        }
        self.assembled.extend_from_slice(piece);
        Ok(())
    }

    /// Takes what has arrived; 0 at the stream's end. Cancel safe.
    pub(crate) async fn fill(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        std::future::poll_fn(|task| {
            if let Some(large) = &mut self.large {
                let (done, missing) = (large.payload.len(), large.missing());
                let mut room = (&mut large.payload).limit(missing);
                let read = ready!(poll_read_buf(Pin::new(&mut *socket), task, &mut room))?;
                large.unmask_from(done);
                return Poll::Ready(Ok(read));
            }
            self.make_room();
            let room = self.buffer.capacity() - self.buffer.len();
            let read = ready!(poll_read_buf(Pin::new(&mut *socket), task, &mut self.buffer))?;
            self.busy = read == room;
            Poll::Ready(Ok(read))
        })
        .await
    }

    fn make_room(&mut self) {
        // Nothing is moved in the usual case: frames end where reads end.
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = if self.busy { BUSY_BYTES } else { QUIET_BYTES };
        if self.buffer.capacity() - self.buffer.len() < wanted {
            self.buffer.reserve_exact(wanted);
        }
    }
}

fn message<'a>(kind: Opcode, payload: &'a [u8], frame: Option<&'a Bytes>) -> Result<Event<'a>, FrameError> {
    match kind {
        Opcode::Text => {
            let text = simdutf8::basic::from_utf8(payload).map_err(|_| FrameError::NotUtf8)?;
            Ok(Event::Text { text, frame })
        }
        _ => Ok(Event::Binary(payload)),
    }
}

/// Begins a text of `bytes` bytes: it follows unmasked, in one frame.
pub(crate) fn begin_text(into: &mut Vec<u8>, bytes: usize) {
    begin(into, 0x81, bytes);
}

/// Begins one of the frames in which a text goes that is too long for one.
pub(crate) fn begin_piece(into: &mut Vec<u8>, is_first: bool, is_last: bool, bytes: usize) {
    begin(into, u8::from(is_first) | if is_last { 0x80 } else { 0 }, bytes);
}

/// The answer to a ping.
pub(crate) fn pong(into: &mut Vec<u8>, payload: &[u8]) {
    begin(into, 0x8a, payload.len());
    into.extend_from_slice(payload);
}

/// An end without a code.
pub(crate) fn close(into: &mut Vec<u8>) {
    begin(into, 0x88, 0);
}

fn begin(into: &mut Vec<u8>, first: u8, bytes: usize) {
    into.push(first);
    match (u8::try_from(bytes), u16::try_from(bytes)) {
        (Ok(bytes @ ..126), _) => into.push(bytes),
        (_, Ok(bytes)) => {
            into.push(126);
            into.extend_from_slice(&bytes.to_be_bytes());
        }
        _ => {
            into.push(127);
            into.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
}

// The path is said because the fuzz targets include this file from elsewhere.
#[cfg(test)]
#[path = "frames/tests.rs"]
mod tests;
