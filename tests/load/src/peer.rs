//! A worker's connection that knows only as much of the protocol as the load needs.

use futures_util::stream::{ReadyChunks, SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Messages taken from the socket at once, at most.
const AT_ONCE: usize = 256;

pub(crate) struct Peer {
    out: SplitSink<Socket, Message>,
    incoming: ReadyChunks<SplitStream<Socket>>,
}

impl Peer {
    /// Connects, and hears that it is registered.
    pub(crate) async fn connect(port: u16) -> Self {
        let config = WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20));
        let url = format!("ws://127.0.0.1:{port}/");
        let (socket, _) =
            tokio_tungstenite::connect_async_with_config(url, Some(config), true).await.expect("connected");
        let (out, incoming) = socket.split();
        let mut peer = Self { out, incoming: incoming.ready_chunks(AT_ONCE) };
        let hello = peer.next().await;
        assert!(hello.iter().any(|text| text.contains("workerregistered")), "{hello:?}");
        peer
    }

    /// Sends all of `messages` in as few system calls as that takes.
    pub(crate) async fn send(&mut self, messages: impl IntoIterator<Item = String>) {
        for message in messages {
            self.out.feed(Message::text(message)).await.expect("sent");
        }
        self.out.flush().await.expect("sent");
    }

    /// What has arrived, at least one text; nothing when the connection has ended.
    pub(crate) async fn next(&mut self) -> Vec<String> {
        loop {
            let Some(chunk) = self.incoming.next().await else { return Vec::new() };
            let texts: Vec<String> = chunk
                .into_iter()
                .filter_map(|message| match message {
                    Ok(Message::Text(text)) => Some(text.as_str().to_owned()),
                    _ => None,
                })
                .collect();
            if !texts.is_empty() {
                return texts;
            }
        }
    }

    /// Answers every call with `result`, until the connection ends.
    pub(crate) async fn serve(mut self, result: String) {
        loop {
            let texts = self.next().await;
            if texts.is_empty() {
                return;
            }
            let answers = texts.iter().filter(|text| text.contains("\"invokefunction\"")).filter_map(|text| {
                let id = invocation_id(text)?;
                Some(format!(
                    r#"{{"type":"invocationresult","invocation_id":"{id}","function_id":"load::echo","result":{result}}}"#
                ))
            });
            let answers: Vec<String> = answers.collect();
            self.send(answers).await;
        }
    }
}

pub(crate) fn register(id: &str) -> String {
    format!(r#"{{"type":"registerfunction","id":"{id}","description":"of the load","metadata":{{"load":true}}}}"#)
}

/// A call under a number, which its answer brings back.
pub(crate) fn call(number: u64, function: &str, data: &str) -> String {
    format!(
        r#"{{"type":"invokefunction","invocation_id":"00000000-0000-4000-8000-{number:012x}","function_id":"{function}","data":{data}}}"#
    )
}

/// The id in a message, found rather than parsed.
pub(crate) fn invocation_id(text: &str) -> Option<&str> {
    const NAME: &str = "\"invocation_id\":\"";
    let start = text.find(NAME)? + NAME.len();
    text.get(start..start + 36)
}

/// The number of [`call`].
pub(crate) fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(invocation_id(text)?.get(24..)?, 16).ok()
}

/// A JSON object of about `bytes` bytes.
pub(crate) fn payload(bytes: usize) -> String {
    format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes.saturating_sub(11)))
}
