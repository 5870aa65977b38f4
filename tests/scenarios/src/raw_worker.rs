//! A worker without manners: it says what a test wants, and hears what the engine really sends.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Piece;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message as Frame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the published SDKs take in one frame.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// Why there is nothing more to hear.
#[derive(Debug)]
pub enum Lost {
    Ended,
    Silent,
}

/// A control connection, with nothing between it and the test.
pub struct RawWorker {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// As the engine said when it connected.
    pub registered: Value,
    /// What came while something else was waited for.
    heard: VecDeque<Value>,
}

impl RawWorker {
    /// # Errors
    /// The engine does not take the connection.
    pub async fn connect(url: &str) -> Result<Self, Lost> {
        let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(Some(MAX_FRAME_BYTES));
        let connecting = tokio_tungstenite::connect_async_with_config(url, Some(limits), true);
        let connected = tokio::time::timeout(PATIENCE, connecting).await.map_err(|_| Lost::Silent)?;
        let (socket, _) = connected.map_err(|_| Lost::Ended)?;
        let mut worker = Self { socket, registered: Value::Null, heard: VecDeque::new() };
        worker.registered = worker.hear().await?;
        Ok(worker)
    }

    /// The message with which this worker, on another connection, ends this one.
    #[must_use]
    pub fn reattachment(&self) -> Value {
        json!({
            "type": "reattach", "previous_worker_id": self.registered["worker_id"],
            "reattach_token": self.registered["reattach_token"],
        })
    }

    /// # Errors
    /// The connection is over.
    pub async fn say_text(&mut self, text: impl Into<String>) -> Result<(), Lost> {
        self.send(Frame::text(text.into())).await
    }

    /// # Errors
    /// The connection is over.
    pub async fn say(&mut self, message: &Value) -> Result<(), Lost> {
        self.say_text(message.to_string()).await
    }

    /// Several messages at once.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn say_all(&mut self, messages: impl IntoIterator<Item = Value>) -> Result<(), Lost> {
        for message in messages {
            self.socket.feed(Frame::text(message.to_string())).await.map_err(lost)?;
        }
        self.socket.flush().await.map_err(lost)
    }

    /// One text in frames of at most `piece` bytes.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn say_in_pieces(&mut self, text: &str, piece: usize) -> Result<(), Lost> {
        let pieces = text.as_bytes().chunks(piece);
        let last = pieces.len() - 1;
        for (at, piece) in pieces.enumerate() {
            let kind = if at == 0 { Data::Text } else { Data::Continue };
            let frame = Piece::message(piece.to_vec(), OpCode::Data(kind), at == last);
            self.send(Frame::Frame(frame)).await?;
        }
        Ok(())
    }

    /// # Errors
    /// The connection is over.
    pub async fn say_bytes(&mut self, bytes: Vec<u8>) -> Result<(), Lost> {
        self.send(Frame::binary(bytes)).await
    }

    async fn send(&mut self, frame: Frame) -> Result<(), Lost> {
        let sending = tokio::time::timeout(PATIENCE, self.socket.send(frame));
        sending.await.map_err(|_| Lost::Silent)?.map_err(lost)
    }

    /// # Errors
    /// The connection is over.
    pub async fn register(&mut self, function_id: &str) -> Result<(), Lost> {
        self.say(&json!({ "type": "registerfunction", "id": function_id })).await
    }

    /// The next message.
    ///
    /// # Errors
    /// None comes.
    pub async fn hear(&mut self) -> Result<Value, Lost> {
        match self.heard.pop_front() {
            Some(message) => Ok(message),
            None => self.receive().await,
        }
    }

    /// The next message that `wanted` wants; the others are kept.
    ///
    /// # Errors
    /// None comes.
    pub async fn hear_of(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value, Lost> {
        if let Some(at) = self.heard.iter().position(&wanted)
            && let Some(message) = self.heard.remove(at)
        {
            return Ok(message);
        }
        loop {
            let message = self.receive().await?;
            if wanted(&message) {
                return Ok(message);
            }
            self.heard.push_back(message);
        }
    }

    async fn receive(&mut self) -> Result<Value, Lost> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.socket.next()).await.map_err(|_| Lost::Silent)?;
            match frame {
                Some(Ok(Frame::Text(text))) => return Ok(serde_json::from_str(&text).expect("the engine speaks JSON")),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return Err(Lost::Ended),
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next call that this worker is to carry out.
    ///
    /// # Errors
    /// None comes.
    pub async fn hear_call(&mut self) -> Result<Value, Lost> {
        self.hear_of(|message| message["type"] == "invokefunction").await
    }

    /// Answers a call as [`Self::hear_call`] brought it.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn answer(&mut self, call: &Value, result: &Value) -> Result<(), Lost> {
        let (invocation, function) = (&call["invocation_id"], &call["function_id"]);
        self.say(&json!({
            "type": "invocationresult", "invocation_id": invocation, "function_id": function, "result": result,
        }))
        .await
    }

    /// Begins a call under a fresh id, which is returned.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn begin(&mut self, function_id: &str, data: &Value) -> Result<String, Lost> {
        let id = Uuid::new_v4().to_string();
        self.begin_as(&id, function_id, data).await?;
        Ok(id)
    }

    /// # Errors
    /// The connection is over.
    pub async fn begin_as(&mut self, id: &str, function_id: &str, data: &Value) -> Result<(), Lost> {
        self.say(&json!({ "type": "invokefunction", "invocation_id": id, "function_id": function_id, "data": data }))
            .await
    }

    /// The answer to a call: its result, or its error.
    ///
    /// # Errors
    /// None comes.
    pub async fn answer_to(&mut self, id: &str) -> Result<Result<Value, Value>, Lost> {
        let is_it = |message: &Value| message["type"] == "invocationresult" && message["invocation_id"] == id;
        let mut answer = self.hear_of(is_it).await?;
        let error = answer["error"].take();
        Ok(if error.is_null() { Ok(answer["result"].take()) } else { Err(error) })
    }

    /// # Errors
    /// No answer comes.
    pub async fn call(&mut self, function_id: &str, data: &Value) -> Result<Result<Value, Value>, Lost> {
        let id = self.begin(function_id, data).await?;
        self.answer_to(&id).await
    }

    /// Returns when the engine has taken all that was said.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn settled(&mut self) -> Result<(), Lost> {
        self.say(&json!({ "type": "ping" })).await?;
        self.hear_of(|message| message["type"] == "pong").await?;
        Ok(())
    }

    /// As [`Self::settled`]; what was heard and not yet asked for.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn heard_until_now(&mut self) -> Result<Vec<Value>, Lost> {
        self.settled().await?;
        Ok(self.heard.drain(..).collect())
    }

    /// Says goodbye, and returns when the engine has ended the connection.
    ///
    /// # Errors
    /// [`Lost::Silent`]: it has not.
    pub async fn leave(mut self) -> Result<(), Lost> {
        // It may be gone already.
        let _ = self.send(Frame::Close(None)).await;
        self.ended().await
    }

    /// Waits until the engine has ended the connection.
    ///
    /// # Errors
    /// [`Lost::Silent`]: it has not.
    pub async fn ended(mut self) -> Result<(), Lost> {
        loop {
            match self.receive().await {
                Ok(_) => {}
                Err(Lost::Ended) => return Ok(()),
                Err(Lost::Silent) => return Err(Lost::Silent),
            }
        }
    }
}

fn lost(_: Error) -> Lost {
    Lost::Ended
}
