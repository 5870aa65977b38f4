//! Target `decode`: text frames as a worker may send them.

use bytes::Bytes;
use engine_protocol::{DecodeError, InvocationResult, InvokeFunction, Message, Payload, with_caller};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::features::Features;

const CALLER: &str = "0192d6f0-0000-7000-8000-000000000001";

/// Whatever is said, it is a message or it is not; a message says the same after it was written and read again, and its
/// payload is JSON with or without a caller in it.
pub fn decode(input: &[u8], features: &mut Features) {
    let Ok(text) = std::str::from_utf8(input) else { return features.note("no text") };
    let message = match engine_protocol::decode(text) {
        Ok(message) => message,
        Err(DecodeError::Envelope { source }) => return features.note(("envelope", shape(&source))),
        Err(DecodeError::UnknownType(_)) => return features.note("unknown"),
        Err(DecodeError::Field { kind, source }) => return features.note(("field", kind, shape(&source))),
    };
    let written = message.encode();
    let again = engine_protocol::decode(&written).expect("what was written is a message");
    assert_eq!(again.encode(), written, "a message is written as it was read");
    let frame = Bytes::copy_from_slice(input);
    let text = std::str::from_utf8(&frame).expect("the same text");
    let kept = engine_protocol::decode_frame(text, &frame).expect("the same message");
    assert_eq!(kept.encode(), written, "with payloads that stay in the frame it is the same");
    assert_eq!(in_pieces(kept.clone(), None), written, "in pieces it is the same");
    features.note(std::mem::discriminant(&message));
    match message {
        Message::InvokeFunction(call) => {
            let InvokeFunction { invocation_id, data, traceparent, baggage, action, metadata, .. } = *call;
            features.note((invocation_id.is_some(), traceparent.is_some(), baggage.is_some(), metadata.is_some()));
            features.note(action.map(|action| std::mem::discriminant(&action)));
            payload(metadata.map(Payload::from), features);
            payload(data, features);
            from_caller(kept, features);
        }
        Message::InvocationResult(answer) => {
            let InvocationResult { result, error, .. } = *answer;
            features.note((result.is_some(), error.is_some()));
            payload(result, features);
        }
        _ => {}
    }
}

fn in_pieces(message: Message, caller: Option<Uuid>) -> String {
    let mut whole = Vec::new();
    message.into_outbound(caller, String::new()).pieces().iter().for_each(|piece| whole.extend_from_slice(piece));
    String::from_utf8(whole).expect("text")
}

/// A call as its handler is sent it: the caller is in its data, and all else is as it was.
fn from_caller(kept: Message, features: &mut Features) {
    let Message::InvokeFunction(mut call) = kept.clone() else { return };
    let with_caller = call.data.take().map(|data| with_caller(data, CALLER).expect("a payload that was decoded"));
    call.data = with_caller.map(Payload::from);
    let wanted = Message::InvokeFunction(call).encode();
    let written = in_pieces(kept, Some(CALLER.parse().expect("a UUID")));
    assert_eq!(written, wanted, "in pieces a call tells of its caller as in one");
    features.note(("sent", written.contains("_caller_worker_id")));
}

/// The first words of an error: what follows are values and places, which would make each error another one.
fn shape(error: &serde_json::Error) -> String {
    error.to_string().split(' ').take(2).collect()
}

fn payload(payload: Option<Payload>, features: &mut Features) {
    let Some(payload) = payload else { return features.note("no payload") };
    let text = payload.text().to_owned();
    let is_json = |text: &str| serde_json::from_str::<&RawValue>(text).is_ok_and(|whole| whole.get() == text);
    assert!(is_json(&text), "{text:?} is JSON");
    features.note(("payload", text.as_bytes().first(), text.contains('\\'), text.len().ilog2()));
    let with_caller = with_caller(payload, CALLER).expect("a payload that was decoded");
    assert!(is_json(with_caller.get()), "{with_caller} is JSON");
    if !text.starts_with('{') {
        return assert_eq!(with_caller.get(), text);
    }
    // What serde_json can hold as a value, it finds the caller in: once, whatever was there before.
    if let Ok(Value::Object(object)) = serde_json::from_str(with_caller.get()) {
        assert_eq!(object.get("_caller_worker_id"), Some(&Value::from(CALLER)));
        features.note("caller");
    }
}
