//! A worker's connection that knows only as much of WebSocket and protocol as the load needs.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer that is longer is no error.
const MAX_ERROR_BYTES: usize = 4096;

/// Room for what arrives, at least.
const READ_BYTES: usize = 128 * 1024;

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

pub(crate) struct Peer {
    socket: TcpStream,
    received: Vec<u8>,
    out: Out,
}

/// Frames that leave together.
#[derive(Default)]
pub(crate) struct Out(Vec<u8>);

impl Peer {
    /// Connects, and hears that it is registered.
    pub(crate) async fn connect(port: u16) -> Self {
        let mut peer = Self::open(port).await;
        let hello = peer.next().await;
        assert!(hello.iter().any(|text| text.contains("workerregistered")), "{hello:?}");
        peer
    }

    /// Any WebSocket.
    pub(crate) async fn open(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        socket.set_nodelay(true).expect("a TCP socket");
        let mut peer = Self { socket, received: Vec::new(), out: Out::default() };
        peer.socket.write_all(UPGRADE.as_bytes()).await.expect("sent");
        let head = loop {
            if let Some(end) = peer.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(peer.socket.read_buf(&mut peer.received).await.expect("read") > 0, "no WebSocket");
        };
        assert!(peer.received.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&peer.received));
        peer.received.drain(..head);
        peer
    }

    /// Sends all of `messages` in as few system calls as that takes.
    pub(crate) async fn send(&mut self, messages: impl IntoIterator<Item = String>) {
        self.write(|out| messages.into_iter().for_each(|message| out.add(&message))).await;
    }

    /// Sends what `add` adds.
    pub(crate) async fn write(&mut self, add: impl FnOnce(&mut Out)) {
        add(&mut self.out);
        self.flush().await;
    }

    async fn flush(&mut self) {
        self.socket.write_all(&self.out.0).await.expect("sent");
        self.out.0.clear();
    }

    /// What has arrived, at least one text; nothing when the connection has ended.
    pub(crate) async fn next(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        self.each(|text, _| texts.push(String::from_utf8(text.to_owned()).expect("UTF-8"))).await;
        texts
    }

    /// Hands over what has arrived, at least one text, and sends what that adds; false when the connection has ended.
    pub(crate) async fn each(&mut self, mut take: impl FnMut(&[u8], &mut Out)) -> bool {
        loop {
            let (mut start, mut is_any) = (0, false);
            while let Some(frame) = Frame::parse(&self.received[start..]) {
                start += frame.bytes;
                match frame.first {
                    TEXT => {
                        take(frame.payload, &mut self.out);
                        is_any = true;
                    }
                    PING => self.out.frame(PONG, &[frame.payload]),
                    CLOSE => return false,
                    other => panic!("the engine sent a frame that begins with {other:#04x}"),
                }
            }
            self.received.drain(..start);
            if !self.out.0.is_empty() {
                self.flush().await;
            }
            if is_any {
                return true;
            }
            self.received.reserve(READ_BYTES);
            if !matches!(self.socket.read_buf(&mut self.received).await, Ok(1..)) {
                return false;
            }
        }
    }

    /// Answers every call with `result`, until the connection ends.
    pub(crate) async fn serve(mut self, result: String) {
        let mut take = |text: &[u8], out: &mut Out| {
            if is_call(text) {
                out.answer(text, &result);
            }
        };
        while self.each(&mut take).await {}
    }
}

impl Out {
    pub(crate) fn add(&mut self, text: &str) {
        self.frame(TEXT, &[text.as_bytes()]);
    }

    /// A call under a number, which its answer brings back.
    pub(crate) fn call(&mut self, number: u64, function: &str, data: &str) {
        self.frame(
            TEXT,
            &[
                br#"{"type":"invokefunction","invocation_id":"00000000-0000-4000-8000-"#,
                &to_hex(number),
                br#"","function_id":""#,
                function.as_bytes(),
                br#"","data":"#,
                data.as_bytes(),
                b"}",
            ],
        );
    }

    /// What a worker says to a call; nothing to one that wants no answer.
    pub(crate) fn answer(&mut self, call: &[u8], result: &str) {
        if let Some(id) = invocation_id(call) {
            self.frame(
                TEXT,
                &[
                    br#"{"type":"invocationresult","invocation_id":""#,
                    id,
                    br#"","function_id":"load::echo","result":"#,
                    result.as_bytes(),
                    b"}",
                ],
            );
        }
    }

    /// Under a mask of zeros, which changes nothing.
    fn frame(&mut self, first: u8, pieces: &[&[u8]]) {
        self.0.push(first);
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        match (length, u16::try_from(length)) {
            (length @ ..126, _) => self.0.push(0x80 | length as u8),
            (_, Ok(length)) => {
                self.0.push(0x80 | 126);
                self.0.extend_from_slice(&length.to_be_bytes());
            }
            (length, _) => {
                self.0.push(0x80 | 127);
                self.0.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        self.0.extend_from_slice(&[0; 4]);
        pieces.iter().for_each(|piece| self.0.extend_from_slice(piece));
    }
}

/// A frame of a server: RFC 6455, section 5, without a mask and in one piece.
struct Frame<'a> {
    first: u8,
    payload: &'a [u8],
    /// Its header included.
    bytes: usize,
}

impl<'a> Frame<'a> {
    /// `None` while it is not all there.
    fn parse(received: &'a [u8]) -> Option<Self> {
        let &[first, length, ref rest @ ..] = received else { return None };
        let (length, rest) = match length {
            126 => rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
            127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length) as usize, rest))?,
            length => (usize::from(length), rest),
        };
        let payload = rest.get(..length)?;
        Some(Self { first, payload, bytes: received.len() - rest.len() + length })
    }
}

pub(crate) fn register(id: &str) -> String {
    format!(r#"{{"type":"registerfunction","id":"{id}","description":"of the load","metadata":{{"load":true}}}}"#)
}

pub(crate) fn register_trigger(trigger_type: &str, function: &str, config: &str) -> String {
    format!(
        r#"{{"type":"registertrigger","id":"{function} on {trigger_type}","trigger_type":"{trigger_type}","function_id":"{function}","config":{config}}}"#
    )
}

/// What is looked for in messages; found, rather than parsed.
static CALL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"invokefunction\""));
static ANSWER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"invocationresult\""));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"error\":{"));
static ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"invocation_id\":\""));

pub(crate) fn is_call(text: &[u8]) -> bool {
    CALL.find(text).is_some()
}

/// Whether it answers a call; one that failed means that nothing was measured.
pub(crate) fn is_answer(text: &[u8]) -> bool {
    let is_error = text.len() <= MAX_ERROR_BYTES && ERROR.find(text).is_some();
    assert!(!is_error, "{}", String::from_utf8_lossy(text));
    ANSWER.find(text).is_some()
}

fn invocation_id(text: &[u8]) -> Option<&[u8]> {
    let start = ID.find(text)? + ID.needle().len();
    text.get(start..start + 36)
}

/// The number of [`Out::call`].
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let digits = invocation_id(text)?.get(24..)?;
    from_hex(digits)
}

/// A number in hexadecimal digits, always as many.
pub(crate) fn to_hex(number: u64) -> [u8; 12] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (4 * (11 - at)) & 0xf) as usize])
}

/// The number of [`to_hex`].
pub(crate) fn from_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

/// A JSON object of about `bytes` bytes.
pub(crate) fn payload(bytes: usize) -> String {
    format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes.saturating_sub(11)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_when_they_are_whole() {
        for length in [0, 125, 126, 70_000] {
            let mut out = Out::default();
            out.frame(TEXT, &[&vec![b'x'; length]]);
            // What a client sends but for the mask is what a server sends.
            let header = out.0.len() - length - 4;
            let mut sent = [&out.0[..header], &out.0[header + 4..]].concat();
            sent[1] &= 0x7f;
            assert!(Frame::parse(&sent[..sent.len() - 1]).is_none());
            sent.push(TEXT);
            let frame = Frame::parse(&sent).expect("whole");
            assert_eq!((frame.first, frame.payload.len(), frame.bytes), (TEXT, length, sent.len() - 1));
        }
    }
    #[test]
    fn a_call_is_json_and_its_answer_brings_back_its_number() {
        let mut out = Out::default();
        out.call(0xabc_1234_5678, "f", r#"{"a":1}"#);
        // Behind two bytes of header and four of mask.
        let call: serde_json::Value = serde_json::from_slice(&out.0[6..]).expect("JSON");
        assert_eq!(call["data"]["a"], 1);
        assert_eq!(call["invocation_id"].as_str().map(str::len), Some(36));
        let mut answers = Out::default();
        answers.answer(&out.0, "null");
        assert!(is_call(&out.0) && is_answer(&answers.0));
        assert_eq!(number(&answers.0), Some(0xabc_1234_5678));
    }
}
