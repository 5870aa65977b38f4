//! Channels over real sockets.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::*;
use crate::hub::Hub;
use crate::server;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A test that waits for longer has failed.
const DEADLINE: Duration = Duration::from_secs(20);

/// An engine without daemons; it ends with the test.
struct Engine {
    hub: Arc<Hub>,
    address: String,
    serving: JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Engine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("ws://{}", listener.local_addr().expect("an address"));
        let hub = Hub::new();
        let serving = tokio::spawn(server::accept_tcp(listener, server::Shared::of(Arc::clone(&hub))));
        Self { hub, address, serving }
    }

    async fn attach(&self, end: &ChannelRef) -> Socket {
        let direction = if end.direction == Direction::Read { "read" } else { "write" };
        let ChannelRef { channel_id, access_key, .. } = end;
        let url = format!("{}/ws/channels/{channel_id}?key={access_key}&dir={direction}", self.address);
        connect_async(url).await.expect("an end").0
    }
}

/// What the reader gets until its socket ends, with the code and reason of the Close frame.
async fn read(mut socket: Socket) -> (Vec<String>, Option<(u16, String)>) {
    let mut items = Vec::new();
    loop {
        let frame = tokio::time::timeout(DEADLINE, socket.next()).await.expect("in time");
        match frame {
            Some(Ok(Frame::Text(text))) => items.push(text.as_str().to_owned()),
            Some(Ok(Frame::Close(close))) => {
                return (items, close.map(|close| (close.code.into(), close.reason.as_str().to_owned())));
            }
            Some(Ok(_)) => {}
            other => panic!("the socket ended without a Close frame: {other:?}"),
        }
    }
}

/// A writer sends two items and then `ending`, or nothing more; the reader comes before or after that.
async fn passes(ending: Option<Option<CloseFrame>>, reader_first: bool) -> Option<(u16, String)> {
    let engine = Engine::start().await;
    let pair = engine.hub.channels.create(8);
    let early = if reader_first { Some(engine.attach(&pair.reader).await) } else { None };
    let mut writer = engine.attach(&pair.writer).await;
    for item in ["one", "two"] {
        writer.send(Frame::text(item)).await.expect("sent");
    }
    match ending {
        Some(close) => writer.send(Frame::Close(close)).await.expect("closed"),
        None => drop(writer),
    }
    let reader = match early {
        Some(reader) => reader,
        None => engine.attach(&pair.reader).await,
    };
    let (items, close) = read(reader).await;
    assert_eq!(items, ["one", "two"]);
    close
}

#[tokio::test]
async fn a_writer_that_closes_has_finished() {
    for reader_first in [true, false] {
        assert_eq!(passes(Some(None), reader_first).await, None);
        let complete = CloseFrame { code: CloseCode::Normal, reason: "stream_complete".into() };
        assert_eq!(passes(Some(Some(complete)), reader_first).await, None);
    }
}

#[tokio::test]
async fn a_writer_that_breaks_off_has_not_finished() {
    for reader_first in [true, false] {
        let broken = Some((1011, "the writer broke off".to_owned()));
        assert_eq!(passes(None, reader_first).await, broken);
        let failed = CloseFrame { code: CloseCode::Error, reason: "disk".into() };
        assert_eq!(passes(Some(Some(failed)), reader_first).await, broken);
    }
}
