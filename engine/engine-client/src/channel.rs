//! The ends of data channels.

use bytes::Bytes;
use engine_protocol::{ChannelRef, Direction};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
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
pub struct ChannelReader(Socket);

/// The end that data goes into, with back-pressure. Dropping it ends the data, as [`ChannelWriter::close`] does.
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
    dial(&url(engine, end)).await.map(ChannelReader).map_err(CallError::Channel)
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
    /// The next message; `None` when the writer has finished. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Item, CallError>> {
        loop {
            return match self.0.next().await? {
                Ok(Frame::Binary(bytes)) => Some(Ok(Item::Binary(bytes))),
                Ok(Frame::Text(text)) => Some(Ok(Item::Text(text.as_str().to_owned()))),
                Ok(Frame::Close(_)) => None,
                Ok(_) => continue,
                Err(error) => Some(Err(CallError::Channel(error.to_string()))),
            };
        }
    }
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

    /// Resolves when the reader's side, or the engine, has ended the channel.
    pub async fn closed(&mut self) {
        while let Some(Ok(_)) = self.stream.next().await {}
    }
}
