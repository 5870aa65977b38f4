//! Request and reply through a `nats-server`, side by side with calls through the engine.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use memchr::memchr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::calls::{echoing, run};
use crate::engine::Engine;
use crate::peer::{from_hex, payload, to_hex};
use crate::server::{Server, free_port};
use crate::table::{Row, Target};

const BYTES: usize = 100;
const IN_FLIGHT: u64 = 256;
/// The two take turns, so that they have the same machine.
const ROUNDS: u32 = 5;
const LASTS: Duration = Duration::from_secs(1);

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let port = free_port();
    let mut command = Command::new("nats-server");
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
    let server = match Server::start(&mut command, port) {
        Ok(server) => server,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: there is no `nats-server`; Debian has it as a package of that name");
            return;
        }
        Err(error) => panic!("nats-server: {error}"),
    };
    let mut responder = Client::connect(port).await;
    responder.write(b"SUB load.echo 1\r\nPING\r\n").await;
    responder.settled().await;
    tokio::spawn(responder.serve());
    let mut requester = Client::connect(port).await;
    requester.write(b"SUB _INBOX.load.* 1\r\nPING\r\n").await;
    requester.settled().await;

    let engine = Engine::start(program);
    let mut caller = echoing(&engine, BYTES).await;
    requester.keep_asking(LASTS).await;
    run(&mut caller, BYTES, IN_FLIGHT, LASTS).await;
    let (mut theirs, mut ours) = (Turns::default(), Turns::default());
    for _ in 0..ROUNDS {
        let (cpu, begun) = (server.cpu(), Instant::now());
        let latencies = requester.keep_asking(LASTS).await;
        theirs.add(latencies, begun.elapsed(), server.cpu() - cpu);
        let (cpu, begun) = (engine.cpu(), Instant::now());
        let latencies = run(&mut caller, BYTES, IN_FLIGHT, LASTS).await;
        ours.add(latencies, begun.elapsed(), engine.cpu() - cpu);
    }
    let theirs = theirs.row("nats-server, request and reply 100 B, 256 in flight");
    let ours = ours.row("the engine beside it, sync call 100 B, 256 in flight");
    let share = ours.per_second.zip(theirs.per_second).map_or(f64::NAN, |(ours, theirs)| 100.0 * ours / theirs);
    rows.push(theirs);
    rows.push(Row {
        other: Some(("of nats-server's rate", share, "%")),
        target: Some(Target::OtherAtLeast(100.0)),
        ..ours
    });
}

#[derive(Default)]
struct Turns {
    latencies: Vec<Duration>,
    wall: Duration,
    cpu: Duration,
}

impl Turns {
    fn add(&mut self, latencies: Vec<Duration>, wall: Duration, cpu: Duration) {
        self.latencies.extend(latencies);
        self.wall += wall;
        self.cpu += cpu;
    }

    fn row(self, name: &str) -> Row {
        Row::new(name, self.latencies, self.wall, self.cpu)
    }
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Message { subject: &'a [u8], reply: Option<&'a [u8]> },
    Ping,
    Pong,
    Other,
}

/// The first thing said, and how many bytes it took; `None` while it is not all there.
fn parse(received: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = memchr(b'\n', received)? + 1;
    let line = received[..end].trim_ascii_end();
    let mut words = line.split(|byte| *byte == b' ');
    match words.next() {
        Some(b"PING") => Some((Said::Ping, end)),
        Some(b"PONG") => Some((Said::Pong, end)),
        Some(b"MSG") => {
            let (subject, _subscription) = (words.next()?, words.next()?);
            let (reply, bytes) = match (words.next()?, words.next()) {
                (reply, Some(bytes)) => (Some(reply), bytes),
                (bytes, None) => (None, bytes),
            };
            let bytes = bytes.iter().fold(0, |bytes, digit| 10 * bytes + usize::from(digit - b'0'));
            let end = end + bytes + 2;
            (received.len() >= end).then_some((Said::Message { subject, reply }, end))
        }
        Some(b"-ERR") => panic!("{}", String::from_utf8_lossy(line)),
        _ => Some((Said::Other, end)),
    }
}

/// The plain text protocol, as much of it as requests and replies need.
struct Client {
    socket: TcpStream,
    received: Vec<u8>,
    out: Vec<u8>,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        socket.set_nodelay(true).expect("a TCP socket");
        let mut client = Self { socket, received: Vec::with_capacity(128 << 10), out: Vec::new() };
        client.write(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").await;
        client
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("sent");
    }

    /// Reads what has arrived, hands over each thing said, and writes what that adds; false when the server has gone.
    async fn next(&mut self, mut each: impl FnMut(&Said<'_>, &mut Vec<u8>)) -> bool {
        if !matches!(self.socket.read_buf(&mut self.received).await, Ok(1..)) {
            return false;
        }
        let mut start = 0;
        while let Some((said, bytes)) = parse(&self.received[start..]) {
            if said == Said::Ping {
                self.out.extend_from_slice(b"PONG\r\n");
            }
            each(&said, &mut self.out);
            start += bytes;
        }
        self.received.drain(..start);
        self.flush().await;
        true
    }

    async fn flush(&mut self) {
        self.socket.write_all(&self.out).await.expect("sent");
        self.out.clear();
    }

    /// After a `PING`: what was said before it has been taken in.
    async fn settled(&mut self) {
        let mut ponged = false;
        while !ponged {
            assert!(self.next(|said, _| ponged |= *said == Said::Pong).await, "nats-server closed the connection");
        }
    }

    async fn serve(mut self) {
        let body = body();
        let mut answer = |said: &Said<'_>, out: &mut Vec<u8>| {
            if let Said::Message { reply: Some(reply), .. } = said {
                [b"PUB ", *reply, &body].iter().for_each(|piece| out.extend_from_slice(piece));
            }
        };
        while self.next(&mut answer).await {}
    }

    async fn keep_asking(&mut self, lasts: Duration) -> Vec<Duration> {
        let body = body();
        let begun = Instant::now();
        let mut starts: Vec<Instant> = Vec::new();
        let mut latencies = Vec::new();
        let ask = |starts: &mut Vec<Instant>, out: &mut Vec<u8>| {
            let pieces: [&[u8]; 3] = [b"PUB load.echo _INBOX.load.", &to_hex(starts.len() as u64), &body];
            pieces.iter().for_each(|piece| out.extend_from_slice(piece));
            starts.push(Instant::now());
        };
        (0..IN_FLIGHT).for_each(|_| ask(&mut starts, &mut self.out));
        self.flush().await;
        while latencies.len() < starts.len() {
            let goes_on = begun.elapsed() < lasts;
            let take = |said: &Said<'_>, out: &mut Vec<u8>| {
                if let Said::Message { subject, .. } = said {
                    let number = subject.get(b"_INBOX.load.".len()..).and_then(from_hex);
                    let number = number.and_then(|number| usize::try_from(number).ok());
                    latencies.push(starts[number.expect("the number of a request")].elapsed());
                    if goes_on {
                        ask(&mut starts, out);
                    }
                }
            };
            assert!(self.next(take).await, "nats-server closed the connection");
        }
        latencies
    }
}

/// Of every message, from behind its subjects.
fn body() -> Vec<u8> {
    let data = payload(BYTES);
    format!(" {}\r\n{data}\r\n", data.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_when_they_are_whole() {
        let text = b"MSG load.echo 1 _INBOX.load.7 5\r\nab\r\nc\r\nPING\r\n";
        let (said, bytes) = parse(text).expect("whole");
        assert_eq!(said, Said::Message { subject: b"load.echo", reply: Some(b"_INBOX.load.7") });
        assert_eq!(parse(&text[bytes..]), Some((Said::Ping, 6)));
        assert_eq!(parse(&text[..bytes - 1]), None);
        assert_eq!(parse(b"MSG s 1 0\r\n\r\n"), Some((Said::Message { subject: b"s", reply: None }, 13)));
    }
}
