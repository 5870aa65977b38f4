//! Request and reply through a `nats-server`, side by side with calls through the engine.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::calls::{echoing, run};
use crate::engine::Engine;
use crate::peer::payload;
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
    responder.write("SUB load.echo 1\r\nPING\r\n".into()).await;
    responder.settled().await;
    tokio::spawn(responder.serve());
    let mut requester = Client::connect(port).await;
    requester.write("SUB _INBOX.load.* 1\r\nPING\r\n".into()).await;
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
    Message { subject: &'a str, reply: Option<&'a str> },
    Ping,
    Pong,
    Other,
}

/// The first thing said, and how many bytes it took; `None` while it is not all there.
fn parse(received: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = received.windows(2).position(|pair| pair == b"\r\n")?;
    let line = std::str::from_utf8(&received[..end]).expect("text");
    let end = end + 2;
    let mut words = line.split_ascii_whitespace();
    match words.next() {
        Some("PING") => Some((Said::Ping, end)),
        Some("PONG") => Some((Said::Pong, end)),
        Some("MSG") => {
            let (subject, _subscription) = (words.next()?, words.next()?);
            let (reply, bytes) = match (words.next()?, words.next()) {
                (reply, Some(bytes)) => (Some(reply), bytes),
                (bytes, None) => (None, bytes),
            };
            let end = end + bytes.parse::<usize>().expect("a length") + 2;
            (received.len() >= end).then_some((Said::Message { subject, reply }, end))
        }
        Some("-ERR") => panic!("{line}"),
        _ => Some((Said::Other, end)),
    }
}

/// The plain text protocol, as much of it as requests and replies need.
struct Client {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        socket.set_nodelay(true).expect("a TCP socket");
        let mut client = Self { socket, received: Vec::with_capacity(128 << 10) };
        client.write("CONNECT {\"verbose\":false,\"pedantic\":false}\r\n".into()).await;
        client
    }

    async fn write(&mut self, text: String) {
        self.socket.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Reads what has arrived, hands over each thing said, and writes what that adds; false when the server has gone.
    async fn next(&mut self, mut each: impl FnMut(&Said<'_>, &mut String)) -> bool {
        if !matches!(self.socket.read_buf(&mut self.received).await, Ok(1..)) {
            return false;
        }
        let (mut start, mut out) = (0, String::new());
        while let Some((said, bytes)) = parse(&self.received[start..]) {
            if said == Said::Ping {
                out.push_str("PONG\r\n");
            }
            each(&said, &mut out);
            start += bytes;
        }
        self.received.drain(..start);
        if !out.is_empty() {
            self.write(out).await;
        }
        true
    }

    /// After a `PING`: what was said before it has been taken in.
    async fn settled(&mut self) {
        let mut ponged = false;
        while !ponged {
            assert!(self.next(|said, _| ponged |= *said == Said::Pong).await, "nats-server closed the connection");
        }
    }

    async fn serve(mut self) {
        let data = payload(BYTES);
        let mut answer = |said: &Said<'_>, out: &mut String| {
            if let Said::Message { reply: Some(reply), .. } = said {
                *out += &format!("PUB {reply} {}\r\n{data}\r\n", data.len());
            }
        };
        while self.next(&mut answer).await {}
    }

    async fn keep_asking(&mut self, lasts: Duration) -> Vec<Duration> {
        let data = payload(BYTES);
        let begun = Instant::now();
        let mut starts: Vec<Instant> = Vec::new();
        let mut latencies = Vec::new();
        let ask = |starts: &mut Vec<Instant>, out: &mut String| {
            *out += &format!("PUB load.echo _INBOX.load.{} {}\r\n{data}\r\n", starts.len(), data.len());
            starts.push(Instant::now());
        };
        let mut first = String::new();
        (0..IN_FLIGHT).for_each(|_| ask(&mut starts, &mut first));
        self.write(first).await;
        while latencies.len() < starts.len() {
            let goes_on = begun.elapsed() < lasts;
            let take = |said: &Said<'_>, out: &mut String| {
                if let Said::Message { subject, .. } = said {
                    let number = subject.rsplit('.').next().and_then(|number| number.parse::<usize>().ok());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_when_they_are_whole() {
        let text = b"MSG load.echo 1 _INBOX.load.7 5\r\nab\r\nc\r\nPING\r\n";
        let (said, bytes) = parse(text).expect("whole");
        assert_eq!(said, Said::Message { subject: "load.echo", reply: Some("_INBOX.load.7") });
        assert_eq!(parse(&text[bytes..]), Some((Said::Ping, 6)));
        assert_eq!(parse(&text[..bytes - 1]), None);
        assert_eq!(parse(b"MSG s 1 0\r\n\r\n"), Some((Said::Message { subject: "s", reply: None }, 13)));
    }
}
