//! How much memory messages take while they wait.

use engine_builtin::Raw;
use engine_protocol::{InvocationResult, InvokeFunction, Message, Payload};

use crate::pressure::OVERHEAD;

/// The memory that a message takes, about.
pub(crate) fn of_message(message: &Message) -> usize {
    let carried = match message {
        Message::InvokeFunction(call) => of_call(call),
        Message::InvocationResult(result) => {
            let InvocationResult { function_id, result, error, traceparent, baggage, .. } = &**result;
            let error = error.as_ref().map_or(0, |error| {
                error.code.len() + error.message.len() + error.stacktrace.as_ref().map_or(0, String::len)
            });
            function_id.len() + payload_len(result.as_ref()) + error + text_len(traceparent) + text_len(baggage)
        }
        Message::RegisterTrigger(trigger) => {
            trigger.function_id.len() + raw_len(trigger.config.as_ref()) + raw_len(trigger.metadata.as_ref())
        }
        _ => 0,
    };
    carried + OVERHEAD
}

pub(crate) fn of_call(call: &InvokeFunction) -> usize {
    let InvokeFunction { function_id, data, traceparent, baggage, metadata, .. } = call;
    function_id.len()
        + payload_len(data.as_ref())
        + raw_len(metadata.as_ref())
        + text_len(traceparent)
        + text_len(baggage)
}

fn payload_len(payload: Option<&Payload>) -> usize {
    payload.map_or(0, |payload| payload.as_bytes().len())
}

fn raw_len(payload: Option<&Raw>) -> usize {
    payload.map_or(0, |payload| payload.get().len())
}

fn text_len(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}
