//! The messages, their decoding and encoding.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::outbound::Carrier;
use crate::payload::Payload;
use crate::shallow;

/// JSON text of its own, which is passed on as it is.
pub(crate) type Raw = Box<RawValue>;

/// Anything that serialises, as a payload.
///
/// # Errors
/// A map key that is no string.
pub fn raw(value: &impl Serialize) -> Result<Raw, serde_json::Error> {
    serde_json::value::to_raw_value(value)
}

/// Why a call or a registration failed. SDKs branch on `code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorBody {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacktrace: Option<String>,
}

impl ErrorBody {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), stacktrace: None }
    }
}

/// One end of a data channel, as it travels in payloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRef {
    pub channel_id: String,
    /// The only credential of the channel.
    pub access_key: String,
    pub direction: Direction,
}

/// From the worker's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Read,
    Write,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "registerfunction")]
pub struct RegisterFunction {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_format: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<Raw>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "unregisterfunction")]
pub struct UnregisterFunction {
    pub id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "registertriggertype")]
pub struct RegisterTriggerType {
    pub id: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_request_format: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_request_format: Option<Raw>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "unregistertriggertype")]
pub struct UnregisterTriggerType {
    pub id: String,
}

/// `config` is always written: providers cannot do without.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "registertrigger")]
pub struct RegisterTrigger {
    pub id: String,
    pub trigger_type: String,
    pub function_id: String,
    #[serde(default)]
    pub config: Option<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Raw>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "unregistertrigger")]
pub struct UnregisterTrigger {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_type: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "triggerregistrationresult")]
pub struct TriggerRegistrationResult {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// How a call is to be carried out; absent means call and answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Action {
    Void,
    Enqueue { queue: String },
}

/// `data` is always written: the Rust SDK cannot decode a call without.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "invokefunction")]
pub struct InvokeFunction {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<Uuid>,
    pub function_id: String,
    #[serde(default)]
    pub data: Option<Payload>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baggage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Raw>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "invocationresult")]
pub struct InvocationResult {
    pub invocation_id: Uuid,
    #[serde(default)]
    pub function_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Payload>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baggage: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "workerregistered")]
pub struct WorkerRegistered {
    pub worker_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reattach_token: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "reattach")]
pub struct Reattach {
    pub previous_worker_id: Uuid,
    #[serde(default)]
    pub reattach_token: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename = "error")]
pub struct ErrorMessage {
    pub error: ErrorBody,
}

/// Any message, either way. The larger ones are boxed: a message is handed on many times.
#[derive(Debug, Clone)]
pub enum Message {
    WorkerRegistered(WorkerRegistered),
    Reattach(Reattach),
    RegisterFunction(Box<RegisterFunction>),
    UnregisterFunction(UnregisterFunction),
    RegisterTriggerType(RegisterTriggerType),
    UnregisterTriggerType(UnregisterTriggerType),
    RegisterTrigger(Box<RegisterTrigger>),
    UnregisterTrigger(UnregisterTrigger),
    TriggerRegistrationResult(Box<TriggerRegistrationResult>),
    InvokeFunction(Box<InvokeFunction>),
    InvocationResult(Box<InvocationResult>),
    /// Accepted and without effect; SDKs up to 0.13 send it.
    RegisterService,
    Ping,
    Pong,
    Error(ErrorMessage),
}

macro_rules! boxed {
    ($($kind:ident),*) => {
        $(impl From<$kind> for Message {
            fn from(message: $kind) -> Self {
                Self::$kind(Box::new(message))
            }
        })*
    };
}

boxed!(RegisterFunction, RegisterTrigger, TriggerRegistrationResult, InvokeFunction, InvocationResult);

/// Why a text frame is no message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("message is no JSON object with a `type`")]
    Envelope { source: serde_json::Error },
    #[error("message type `{0}` is unknown")]
    UnknownType(String),
    #[error("message `{kind}` has a bad field")]
    Field { kind: String, source: serde_json::Error },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

/// Reads one text frame.
///
/// # Errors
/// [`DecodeError`]; the frame is then dropped and the connection kept.
pub fn decode(text: &str) -> Result<Message, DecodeError> {
    shallow::read(text, None).map_or_else(|| decode_thoroughly(text), Ok)
}

/// As [`decode`]; a large payload of the message that is most of `frame`, in which `text` lies, keeps that instead of a
/// copy of its own.
///
/// # Errors
/// Those of [`decode`].
///
/// # Panics
/// When `text` is not in `frame`.
pub fn decode_frame(text: &str, frame: &Bytes) -> Result<Message, DecodeError> {
    shallow::read(text, Some(frame)).map_or_else(|| decode_thoroughly(text), Ok)
}

/// Any message in any spelling, and the reason why a text is none.
fn decode_thoroughly(text: &str) -> Result<Message, DecodeError> {
    fn read<'a, T: Deserialize<'a>>(kind: &str, text: &'a str) -> Result<T, DecodeError> {
        serde_json::from_str(text).map_err(|source| DecodeError::Field { kind: kind.to_owned(), source })
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|source| DecodeError::Envelope { source })?;
    let kind = envelope.kind.as_ref();
    Ok(match kind {
        "invokefunction" => Message::InvokeFunction(read(kind, text)?),
        "invocationresult" => Message::InvocationResult(read(kind, text)?),
        "registerfunction" => Message::RegisterFunction(read(kind, text)?),
        "unregisterfunction" => Message::UnregisterFunction(read(kind, text)?),
        "registertriggertype" => Message::RegisterTriggerType(read(kind, text)?),
        "unregistertriggertype" => Message::UnregisterTriggerType(read(kind, text)?),
        "registertrigger" => Message::RegisterTrigger(read(kind, text)?),
        "unregistertrigger" => Message::UnregisterTrigger(read(kind, text)?),
        "triggerregistrationresult" => Message::TriggerRegistrationResult(read(kind, text)?),
        "workerregistered" => Message::WorkerRegistered(read(kind, text)?),
        "reattach" => Message::Reattach(read(kind, text)?),
        "registerservice" => Message::RegisterService,
        "ping" => Message::Ping,
        "pong" => Message::Pong,
        "error" => Message::Error(read(kind, text)?),
        other => return Err(DecodeError::UnknownType(other.chars().take(64).collect())),
    })
}

impl Message {
    /// The text frame [`decode`] reads back.
    #[must_use]
    pub fn encode(&self) -> String {
        let written = match self {
            Self::WorkerRegistered(message) => serde_json::to_string(message),
            Self::Reattach(message) => serde_json::to_string(message),
            Self::RegisterFunction(message) => serde_json::to_string(message),
            Self::UnregisterFunction(message) => serde_json::to_string(message),
            Self::RegisterTriggerType(message) => serde_json::to_string(message),
            Self::UnregisterTriggerType(message) => serde_json::to_string(message),
            Self::RegisterTrigger(message) => serde_json::to_string(message),
            Self::UnregisterTrigger(message) => serde_json::to_string(message),
            Self::TriggerRegistrationResult(message) => serde_json::to_string(message),
            Self::InvokeFunction(message) => Ok(message.text()),
            Self::InvocationResult(message) => Ok(message.text()),
            Self::Error(message) => serde_json::to_string(message),
            Self::RegisterService => Ok(r#"{"type":"registerservice"}"#.into()),
            Self::Ping => Ok(r#"{"type":"ping"}"#.into()),
            Self::Pong => Ok(r#"{"type":"pong"}"#.into()),
        };
        // Strings, numbers and JSON that was parsed once: there is nothing in a message that cannot be written.
        written.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
