//! The ends of data channels.

use bytes::Bytes;
use engine_protocol::{ChannelRef, Direction};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::client::CallError;
use crate::session::dial;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The two ends of a new channel.
#[derive(Debug, Clone, Deserialize)]
pub struct ChannelPair {
    pub writer: ChannelRef,
    pub reader: ChannelRef,
}

/// One message on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Binary(Bytes),
    Text(String),
}

/// The end that data comes out of. Dropping it ends the channel for its writer.
pub struct ChannelReader {
    socket: Socket,
    /// Nothing more is to be told: neither data, nor how it ended.
    ended: bool,
}

/// The end that data goes into, with back-pressure. Dropping it breaks the channel off: only after
/// [`ChannelWriter::close`] the reader takes what came for the whole.
pub struct ChannelWriter {
    sink: SplitSink<Socket, Frame>,
    stream: SplitStream<Socket>,
}

fn url(engine: &str, end: &ChannelRef) -> String {
    let direction = match end.direction {
        Direction::Read => "read",
        Direction::Write => "write",
    };
    let base = engine.trim_end_matches('/');
    format!("{base}/ws/channels/{}?key={}&dir={direction}", escape(&end.channel_id), escape(&end.access_key))
}

/// Percent-encodes what a URL's path or query may not hold: the reference may come from another worker.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

pub(crate) async fn open_reader(engine: &str, end: &ChannelRef) -> Result<ChannelReader, CallError> {
    expect(end, Direction::Read)?;
    let socket = dial(&url(engine, end)).await.map_err(CallError::Channel)?;
    Ok(ChannelReader { socket, ended: false })
}

pub(crate) async fn open_writer(engine: &str, end: &ChannelRef) -> Result<ChannelWriter, CallError> {
    expect(end, Direction::Write)?;
    let (sink, stream) = dial(&url(engine, end)).await.map_err(CallError::Channel)?.split();
    Ok(ChannelWriter { sink, stream })
}

fn expect(end: &ChannelRef, direction: Direction) -> Result<(), CallError> {
    if end.direction == direction {
        return Ok(());
    }
    Err(CallError::Channel(format!("it is the {:?} end", end.direction).to_lowercase()))
}

impl ChannelReader {
    /// The next message; `None` when the writer has finished, or after an error. Cancel safe.
    ///
    /// # Errors
    /// [`CallError::Aborted`]: writer, engine or connection went away before the writer had finished.
    pub async fn next(&mut self) -> Option<Result<Item, CallError>> {
        if self.ended {
            return None;
        }
        loop {
            let aborted = match self.socket.next().await {
                Some(Ok(Frame::Binary(bytes))) => return Some(Ok(Item::Binary(bytes))),
                Some(Ok(Frame::Text(text))) => return Some(Ok(Item::Text(text.as_str().to_owned()))),
                Some(Ok(Frame::Close(close))) => why_broken(close),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Some(error.to_string()),
                None => Some("the connection ended".to_owned()),
            };
            self.ended = true;
            return aborted.map(|reason| Err(CallError::Aborted(reason)));
        }
    }
}

/// `None` for an orderly end.
fn why_broken(close: Option<CloseFrame>) -> Option<String> {
    let close = close.filter(|close| close.code != CloseCode::Normal)?;
    let reason = close.reason.as_str();
    Some(if reason.is_empty() { format!("closed with code {}", close.code) } else { reason.to_owned() })
}

impl ChannelWriter {
    /// Sends a message once there is room for it.
    ///
    /// # Errors
    /// The reader has left, or the connection broke.
    pub async fn send(&mut self, item: Item) -> Result<(), CallError> {
        let frame = match item {
            Item::Binary(bytes) => Frame::Binary(bytes),
            Item::Text(text) => Frame::text(text),
        };
        self.sink.send(frame).await.map_err(|error| CallError::Channel(error.to_string()))
    }

    /// Says that there is no more, and waits until the engine has taken everything.
    ///
    /// # Errors
    /// The connection broke before.
    pub async fn close(mut self) -> Result<(), CallError> {
        self.sink.close().await.map_err(|error| CallError::Channel(error.to_string()))?;
        while let Some(Ok(_)) = self.stream.next().await {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// What a reader is told when the engine sends one message and then `ending`; without one the socket just ends.
    async fn told(ending: Option<Frame>) -> Vec<Result<Item, CallError>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let engine = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("the reader");
            let mut socket = tokio_tungstenite::accept_async(socket).await.expect("a WebSocket");
            socket.send(Frame::text("half")).await.expect("sent");
            if let Some(ending) = ending {
                socket.send(ending).await.expect("sent");
                while let Some(Ok(_)) = socket.next().await {}
            }
        });
        let end = ChannelRef { channel_id: "c".into(), access_key: "k".into(), direction: Direction::Read };
        let mut reader = open_reader(&url, &end).await.expect("a reader");
        let mut told = Vec::new();
        while let Some(item) = reader.next().await {
            told.push(item);
        }
        assert!(reader.next().await.is_none(), "an end stays an end");
        drop(reader);
        engine.await.expect("the engine's side");
        told
    }

    fn close(code: CloseCode, reason: &'static str) -> Option<Frame> {
        Some(Frame::Close(Some(CloseFrame { code, reason: reason.into() })))
    }

    #[tokio::test]
    async fn an_orderly_end_is_no_error() {
        for ending in [Some(Frame::Close(None)), close(CloseCode::Normal, "stream_complete")] {
            let told = told(ending).await;
            assert!(matches!(&told[..], [Ok(Item::Text(text))] if text == "half"), "{told:?}");
        }
    }

    #[tokio::test]
    async fn a_channel_that_breaks_off_is_an_error() {
        for (ending, reason) in [
            (close(CloseCode::Error, "the writer broke off"), "the writer broke off"),
            (close(CloseCode::Away, ""), "1001"),
            (None, "closing handshake"),
        ] {
            let told = told(ending).await;
            let [Ok(_), Err(CallError::Aborted(said))] = &told[..] else { panic!("{told:?}") };
            assert!(said.contains(reason), "{said}");
        }
    }
}
