//! What a program says to the engine, and what it offers.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_protocol::{
    Action, ErrorBody, InvokeFunction, Message, RegisterFunction, RegisterTrigger, RegisterTriggerType,
};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::channel::{self, ChannelPair, ChannelReader, ChannelWriter};
use crate::session;

/// Messages that wait for the connection.
const OUTBOUND: usize = 1024;

/// Who connects, and where to.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `ws://host:port`
    pub url: String,
    /// Under which the engine lists this worker.
    pub name: String,
    pub description: Option<String>,
}

/// A function that this worker offers.
#[derive(Debug, Clone, Default)]
pub struct FunctionSpec {
    pub id: String,
    pub description: String,
    /// JSON Schema of the payload.
    pub request_format: Option<Value>,
    /// JSON Schema of the result.
    pub response_format: Option<Value>,
    pub metadata: Option<Value>,
}

/// One call of a function that this worker offers.
#[derive(Debug, Clone)]
pub struct Call {
    pub function_id: String,
    pub data: Box<RawValue>,
}

/// `Ok(None)` is a function that returns nothing.
pub type HandlerResult = Result<Option<Box<RawValue>>, ErrorBody>;

/// Answers calls; any `Fn(Call) -> impl Future<Output = HandlerResult>` is one. Calls run concurrently.
pub trait Handler: Send + Sync + 'static {
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
}

impl<F, R> Handler for F
where
    F: Fn(Call) -> R + Send + Sync + 'static,
    R: Future<Output = HandlerResult> + Send + 'static,
{
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>> {
        Box::pin(self(call))
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("could not connect to the engine at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("no response from `{function_id}` within {} ms", timeout.as_millis())]
    Timeout { function_id: String, timeout: Duration },
    /// The function's, or the engine's, own words.
    #[error(transparent)]
    Remote(#[from] ErrorBody),
    #[error("the connection to the engine was lost")]
    Closed,
    #[error("the payload cannot be written as JSON")]
    Payload(#[source] serde_json::Error),
    #[error("the channel cannot be used: {0}")]
    Channel(String),
    /// What came so far is not all there was.
    #[error("the channel broke off before its end: {0}")]
    Aborted(String),
}

/// What must be said again after each reconnect.
#[derive(Default)]
pub(crate) struct Registrations {
    pub(crate) trigger_types: BTreeMap<String, RegisterTriggerType>,
    pub(crate) functions: BTreeMap<String, (RegisterFunction, Arc<dyn Handler>)>,
    pub(crate) triggers: BTreeMap<String, RegisterTrigger>,
}

/// What the session task is told.
pub(crate) enum Command {
    Send(Message),
    Call { call: InvokeFunction, answer: oneshot::Sender<Result<Option<Box<RawValue>>, CallError>> },
    Forget(Uuid),
}

/// Whether the session is up.
#[derive(Debug, Clone)]
pub(crate) enum Status {
    Connecting,
    Connected,
    Failed(String),
}

pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) registrations: Mutex<Registrations>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) stop: CancellationToken,
}

/// A worker's connection to the engine. Clones are the same worker; it leaves when the last of them is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Client {
    /// Starts connecting, in the background, for as long as the client lives. Must be called inside a runtime.
    #[must_use]
    pub fn connect(config: ClientConfig) -> Self {
        let (commands, receiver) = mpsc::channel(OUTBOUND);
        let shared = Arc::new(Shared {
            config,
            registrations: Mutex::new(Registrations::default()),
            status: watch::Sender::new(Status::Connecting),
            stop: CancellationToken::new(),
        });
        tokio::spawn(session::run(Arc::clone(&shared), receiver));
        Self { shared, commands }
    }

    /// Waits for the connection. Gives up at once when nobody listens on a loopback address.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] with the last reason.
    pub async fn connected(&self, deadline: Duration) -> Result<(), CallError> {
        let mut status = self.shared.status.subscribe();
        let url = self.shared.config.url.clone();
        let loopback = ["//127.", "//localhost", "//[::1]"].iter().any(|host| url.contains(host));
        let wanted = |status: &Status| match status {
            Status::Connected => true,
            Status::Failed(reason) => loopback && reason.contains("refused"),
            Status::Connecting => false,
        };
        let waited = tokio::time::timeout(deadline, status.wait_for(wanted)).await;
        if let Ok(Ok(status)) = &waited
            && matches!(**status, Status::Connected)
        {
            return Ok(());
        }
        drop(waited);
        let reason = match &*self.shared.status.borrow() {
            Status::Failed(reason) => reason.clone(),
            Status::Connecting | Status::Connected => format!("no answer within {} ms", deadline.as_millis()),
        };
        Err(CallError::Unreachable { url, reason })
    }

    /// Offers a function, now and after every reconnect. A second registration of an id replaces the first.
    pub fn register(&self, function: FunctionSpec, handler: impl Handler) {
        let format = |value: Option<Value>| value.and_then(|value| engine_protocol::raw(&value).ok());
        let message = RegisterFunction {
            id: function.id.clone(),
            description: Some(function.description),
            request_format: format(function.request_format),
            response_format: format(function.response_format),
            metadata: format(function.metadata),
            invocation: None,
        };
        self.change(|registrations| {
            registrations.functions.insert(function.id, (message.clone(), Arc::new(handler)));
        });
        self.send_soon(Message::from(message));
    }

    /// Offers a trigger type.
    pub fn register_trigger_type(&self, id: &str, description: &str, config_schema: Option<Value>) {
        let message = RegisterTriggerType {
            id: id.to_owned(),
            description: Some(description.to_owned()),
            trigger_request_format: config_schema.and_then(|schema| engine_protocol::raw(&schema).ok()),
            call_request_format: None,
        };
        self.change(|registrations| {
            registrations.trigger_types.insert(id.to_owned(), message.clone());
        });
        self.send_soon(Message::RegisterTriggerType(message));
    }

    /// Binds a function to a trigger type and returns the trigger's id.
    pub fn register_trigger(&self, trigger_type: &str, function_id: &str, config: &Value) -> String {
        let id = Uuid::new_v4().to_string();
        let message = RegisterTrigger {
            id: id.clone(),
            trigger_type: trigger_type.to_owned(),
            function_id: function_id.to_owned(),
            config: engine_protocol::raw(config).ok(),
            metadata: None,
        };
        self.change(|registrations| {
            registrations.triggers.insert(id.clone(), message.clone());
        });
        self.send_soon(Message::from(message));
        id
    }

    fn change(&self, change: impl FnOnce(&mut Registrations)) {
        change(&mut self.shared.registrations.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// For registrations, which are said again at the next connection anyway.
    fn send_soon(&self, message: Message) {
        if matches!(*self.shared.status.borrow(), Status::Connected) {
            let commands = self.commands.clone();
            tokio::spawn(async move { commands.send(Command::Send(message)).await });
        }
    }

    /// Calls a function and waits for its answer. Dropping the future forgets the call.
    ///
    /// # Errors
    /// [`CallError`]; after `Timeout` and `Closed` it is unknown whether the function ran.
    pub async fn call(
        &self,
        function_id: &str,
        data: &impl Serialize,
        timeout: Duration,
    ) -> Result<Option<Box<RawValue>>, CallError> {
        let id = Uuid::new_v4();
        let call = self.invocation(Some(id), function_id, data, None)?;
        let (answer, answered) = oneshot::channel();
        let forget = Forget { id, commands: &self.commands };
        let work = async {
            self.commands.send(Command::Call { call, answer }).await.map_err(|_| CallError::Closed)?;
            answered.await.map_err(|_| CallError::Closed)?
        };
        let result = tokio::time::timeout(timeout, work).await;
        if result.is_ok() {
            std::mem::forget(forget);
        }
        result.unwrap_or_else(|_| Err(CallError::Timeout { function_id: function_id.to_owned(), timeout }))
    }

    /// Calls a function without wanting to know what comes of it.
    ///
    /// # Errors
    /// The payload, or a client that has been shut down.
    pub async fn call_void(&self, function_id: &str, data: &impl Serialize) -> Result<(), CallError> {
        let call = self.invocation(None, function_id, data, Some(Action::Void))?;
        let command = Command::Send(Message::from(call));
        self.commands.send(command).await.map_err(|_| CallError::Closed)
    }

    fn invocation(
        &self,
        invocation_id: Option<Uuid>,
        function_id: &str,
        data: &impl Serialize,
        action: Option<Action>,
    ) -> Result<InvokeFunction, CallError> {
        let data = engine_protocol::raw(data).map_err(CallError::Payload)?;
        Ok(InvokeFunction {
            invocation_id,
            function_id: function_id.to_owned(),
            data: Some(data.into()),
            traceparent: None,
            baggage: None,
            action,
            metadata: None,
        })
    }

    /// Makes a data channel of `buffer` messages (1 to 1024).
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn create_channel(&self, buffer: u16) -> Result<ChannelPair, CallError> {
        let request = serde_json::json!({ "buffer_size": buffer });
        let answer = self.call("engine::channels::create", &request, Duration::from_secs(10)).await?;
        let text = answer.as_ref().map_or("null", |answer| answer.get());
        serde_json::from_str(text).map_err(|error| CallError::Channel(error.to_string()))
    }

    /// # Errors
    /// The channel is unknown, its end is taken, or the engine cannot be reached.
    pub async fn open_reader(&self, end: &engine_protocol::ChannelRef) -> Result<ChannelReader, CallError> {
        channel::open_reader(&self.shared.config.url, end).await
    }

    /// # Errors
    /// The channel is unknown, its end is taken, or the engine cannot be reached.
    pub async fn open_writer(&self, end: &engine_protocol::ChannelRef) -> Result<ChannelWriter, CallError> {
        channel::open_writer(&self.shared.config.url, end).await
    }

    /// Leaves: the engine forgets this worker's functions.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.commands.closed().await;
    }
}

/// Forgets a call whose future was dropped or has timed out.
struct Forget<'a> {
    id: Uuid,
    commands: &'a mpsc::Sender<Command>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        // A full queue means that the answer will be dropped when it comes.
        let _ = self.commands.try_send(Command::Forget(self.id));
    }
}
