//! HTTP requests that a worker answers through a trigger, on connections that stay open.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::engine::Engine;
use crate::peer::{Peer, register, register_trigger};
use crate::server::free_port;
use crate::table::{Row, Target};

const CONNECTIONS: usize = 16;
const WARM_UP: Duration = Duration::from_secs(1);
const LASTS: Duration = Duration::from_secs(4);
const REQUEST: &[u8] = b"GET /load HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n";
const ANSWER: &str = r#"{"status_code":200,"body":{"served":true}}"#;

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let port = free_port();
    let engine = Engine::with(program, &format!("  - name: iii-http\n    config: {{host: 127.0.0.1, port: {port}}}\n"));
    let mut worker = Peer::connect(engine.port).await;
    let trigger = register_trigger("http", "load::page", r#"{"api_path":"load","http_method":"GET"}"#);
    worker.send([register("load::page"), trigger]).await;
    tokio::spawn(worker.serve(ANSWER.into()));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(port).await);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !clients[0].get().await.starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < deadline, "no route");
    }
    let (clients, _) = together(clients, WARM_UP).await;
    let (cpu, begun) = (engine.cpu(), Instant::now());
    let (_, latencies) = together(clients, LASTS).await;
    let name = "HTTP GET through a trigger, 16 connections";
    let row = Row::new(name, latencies, begun.elapsed(), engine.cpu() - cpu);
    rows.push(Row { target: Some(Target::CpuUs(60.0)), ..row });
}

/// All clients at once, each with one request after the other.
async fn together(clients: Vec<Client>, lasts: Duration) -> (Vec<Client>, Vec<Duration>) {
    let running: Vec<_> = clients.into_iter().map(|client| tokio::spawn(client.keep_asking(lasts))).collect();
    let (mut clients, mut latencies) = (Vec::new(), Vec::new());
    for task in running {
        let (client, times) = task.await.expect("no panic");
        clients.push(client);
        latencies.extend(times);
    }
    (clients, latencies)
}

struct Client {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        let socket = loop {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        socket.set_nodelay(true).expect("a TCP socket");
        Self { socket, received: Vec::new() }
    }

    async fn keep_asking(mut self, lasts: Duration) -> (Self, Vec<Duration>) {
        let begun = Instant::now();
        let mut times = Vec::new();
        while begun.elapsed() < lasts {
            let start = Instant::now();
            let answer = self.get().await;
            times.push(start.elapsed());
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"served":true}"#), "{answer}");
        }
        (self, times)
    }

    /// One request; its answer, head and body.
    async fn get(&mut self) -> String {
        self.socket.write_all(REQUEST).await.expect("sent");
        self.received.clear();
        while !is_whole(&self.received) {
            assert!(
                self.socket.read_buf(&mut self.received).await.expect("read") > 0,
                "the server closed the connection"
            );
        }
        String::from_utf8_lossy(&self.received).into_owned()
    }
}

fn is_whole(received: &[u8]) -> bool {
    let text = String::from_utf8_lossy(received);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.expect("a length")
}
