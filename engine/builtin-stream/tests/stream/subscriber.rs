//! A subscriber: a WebSocket, and what it says and hears.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::Worker;
use crate::fake::PATIENCE;

pub(crate) struct Subscriber {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Subscriber {
    pub(crate) async fn connect(worker: &Worker) -> Self {
        let (socket, _) = connect_async(url(worker)).await.expect("a socket");
        Self { socket }
    }

    /// Joins a group of `chat`, or an item of it.
    pub(crate) async fn join(&mut self, subscription: &str, group: &str, id: Option<&str>) {
        let data = json!({ "subscriptionId": subscription, "streamName": "chat", "groupId": group, "id": id });
        self.send(&json!({ "type": "join", "data": data }).to_string()).await;
    }

    pub(crate) async fn leave(&mut self, subscription: &str, group: &str) {
        let data = json!({ "subscriptionId": subscription, "streamName": "chat", "groupId": group });
        self.send(&json!({ "type": "leave", "data": data }).to_string()).await;
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    /// The next event object.
    pub(crate) async fn object(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("in time");
            if let Message::Text(text) = message.expect("not closed").expect("a message") {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }

    /// The type and the data of the next event.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        let mut event = self.object().await["event"].take();
        (event["type"].as_str().expect("a type").to_owned(), event["data"].take())
    }

    pub(crate) async fn hears(&mut self, event: &str, data: Value) {
        assert_eq!(self.next().await, (event.to_owned(), data));
    }
}

pub(crate) fn url(worker: &Worker) -> String {
    format!("ws://{}/", worker.stream.address().expect("listening"))
}
