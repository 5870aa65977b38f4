//! What the engine adds to the two WebSockets that a call goes through.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::calls::{echoing, run};
use crate::engine::Engine;
use crate::peer::{Peer, payload};
use crate::table::{Row, Target, percentile};

/// The two take turns, so that they have the same machine.
const ROUNDS: usize = 9;
const LASTS: Duration = Duration::from_millis(400);
const BYTES: usize = 100;

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::start(program);
    let mut caller = echoing(&engine, BYTES).await;
    let mut bare = Peer::open(bare_echo().await).await;
    run(&mut caller, BYTES, 1, LASTS).await;
    bounce(&mut bare).await;
    let (mut bounces, mut calls, mut added) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bounced, mut called) = (Duration::ZERO, Duration::ZERO);
    let mut cpu = Duration::ZERO;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let mut times = bounce(&mut bare).await;
        bounced += begun.elapsed();
        let (before, begun) = (engine.cpu(), Instant::now());
        let mut through = run(&mut caller, BYTES, 1, LASTS).await;
        called += begun.elapsed();
        cpu += engine.cpu() - before;
        times.sort_unstable();
        through.sort_unstable();
        added.push(percentile(&through, 0.5) - 2.0 * percentile(&times, 0.5));
        bounces.extend(times);
        calls.extend(through);
    }
    added.sort_unstable_by(f64::total_cmp);
    rows.push(Row { cpu_us: None, ..Row::new("bare WebSocket echo, 100 B", bounces, bounced, Duration::ZERO) });
    rows.push(Row {
        other: Some(("over two bare echoes", added[ROUNDS / 2], "µs")),
        target: Some(Target::OtherAtMost(60.0)),
        ..Row::new("one call in flight, 100 B", calls, called, cpu)
    });
}

/// Sends back what it is sent, on a port of its own.
async fn bare_echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a client");
        socket.set_nodelay(true).expect("a TCP socket");
        let mut socket = accept_async(socket).await.expect("a WebSocket");
        while let Some(Ok(message)) = socket.next().await {
            if !matches!(message, Message::Text(_)) || socket.send(message).await.is_err() {
                return;
            }
        }
    });
    port
}

async fn bounce(bare: &mut Peer) -> Vec<Duration> {
    let data = payload(BYTES);
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < LASTS {
        let start = Instant::now();
        bare.write(|out| out.call(0, "load::echo", &data)).await;
        assert!(!bare.next().await.is_empty(), "the echo has gone");
        times.push(start.elapsed());
    }
    times
}
