//! A call through the engine against a bare WebSocket echo.

use std::time::Instant;

use engine_client::{Call, FunctionSpec};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use test_rig::Rig;
use tokio::net::TcpListener;

use crate::report::{Report, Samples};
use crate::sandbox::{call, connect};

const CALLS: usize = 3000;
const WARM_UP: usize = 200;

pub(crate) fn measure(report: &mut Report) {
    let rig = Rig::builder().start_engine_only();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let worker = connect(&rig).await;
        let function = FunctionSpec { id: "bench::echo".into(), ..FunctionSpec::default() };
        worker.register(function, |call: Call| async move { Ok(Some(call.data)) });
        let client = connect(&rig).await;
        let mut echo = echo_server().await;
        let text = json!({ "value": 1, "text": "0123456789" });
        let (mut calls, mut echoes) = (Vec::new(), Vec::new());
        for number in 0..CALLS + WARM_UP {
            let start = Instant::now();
            call(&client, "bench::echo", text.clone()).await;
            let called = start.elapsed();
            let start = Instant::now();
            echo.send(text.to_string().into()).await.expect("sent");
            echo.next().await.expect("an echo").expect("an echo");
            if number >= WARM_UP {
                calls.push(called);
                echoes.push(start.elapsed());
            }
        }
        let echoes = Samples::from_durations(echoes);
        // A call is two hops each way, an echo one.
        report.row(
            "engine call, round trip",
            Samples::from_durations(calls),
            Some(("bare WebSocket echo", &echoes)),
            "",
        );
    });
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// A server that says back what it hears, and a connection to it.
async fn echo_server() -> Socket {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let _ = stream.set_nodelay(true);
        let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a WebSocket");
        while let Some(Ok(message)) = socket.next().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let (socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}")).await.expect("connected");
    socket
}
