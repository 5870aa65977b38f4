//! The same bytes as a serialiser would write, in one piece and in three.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use serde_json::value::RawValue;

use crate::message::{Action, ErrorBody};

fn payload() -> impl Strategy<Value = Option<Payload>> {
    let json = prop_oneof![
        Just("1.50".to_owned()),
        ".*".prop_map(|text| serde_json::json!({ "a": text }).to_string()),
        (LARGE_BYTES - 4..LARGE_BYTES + 4).prop_map(|length| format!("\"{}\"", "x".repeat(length))),
        (LARGE_BYTES - 10..LARGE_BYTES + 4).prop_map(|length| format!("{{\"a\":\"{}\"}}", "x".repeat(length))),
        Just("{ }".to_owned()),
        Just(r#"{"_caller_worker_id":"me","a":1}"#.to_owned()),
    ];
    prop::option::of(json.prop_map(|json| RawValue::from_string(json).expect("JSON").into()))
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of(".{0,20}")
}

fn call() -> impl Strategy<Value = InvokeFunction> {
    let action = prop_oneof![Just(Action::Void), ".*".prop_map(|queue| Action::Enqueue { queue })];
    (any::<Option<u128>>(), ".{0,20}", payload(), text(), text(), prop::option::of(action), payload()).prop_map(
        |(id, function_id, data, traceparent, baggage, action, metadata)| InvokeFunction {
            invocation_id: id.map(Uuid::from_u128),
            function_id,
            data,
            traceparent,
            baggage,
            action,
            metadata: metadata.map(Payload::into_raw),
        },
    )
}

fn answer() -> impl Strategy<Value = InvocationResult> {
    let error = (".*", ".*", text()).prop_map(|(code, message, stacktrace)| ErrorBody { code, message, stacktrace });
    (any::<u128>(), ".{0,20}", payload(), prop::option::of(error), text(), text()).prop_map(
        |(id, function_id, result, error, traceparent, baggage)| InvocationResult {
            invocation_id: Uuid::from_u128(id),
            function_id,
            result,
            error,
            traceparent,
            baggage,
        },
    )
}

fn check(message: Message, wanted: &str) -> Result<(), TestCaseError> {
    prop_assert_eq!(&message.encode(), wanted);
    let outbound = message.into_outbound(None, "left over".to_owned());
    prop_assert_eq!(outbound.pieces().concat(), wanted.as_bytes());
    prop_assert_eq!(outbound.len(), wanted.len());
    Ok(())
}

proptest! {
    #[test]
    fn a_call_is_written_as_serde_would(call in call()) {
        let wanted = serde_json::to_string(&call).expect("written");
        check(call.into(), &wanted)?;
    }

    #[test]
    fn a_call_that_tells_its_caller_has_it_in_its_data(mut call in call(), caller in any::<u128>()) {
        let caller = Uuid::from_u128(caller);
        let outbound = Message::from(call.clone()).into_outbound(Some(caller), String::new());
        call.data = call.data.map(|data| crate::with_caller(data, &caller.to_string()).expect("a payload").into());
        prop_assert_eq!(outbound.pieces().concat(), serde_json::to_string(&call).expect("written").into_bytes());
        prop_assert_eq!(outbound.len(), outbound.pieces().concat().len());
    }

    #[test]
    fn an_answer_is_written_as_serde_would(answer in answer()) {
        let wanted = serde_json::to_string(&answer).expect("written");
        check(answer.into(), &wanted)?;
    }
}

#[test]
fn a_large_payload_is_not_copied() {
    let data = RawValue::from_string(format!("\"{}\"", "x".repeat(LARGE_BYTES))).expect("JSON");
    let place = data.get().as_ptr();
    let call = InvokeFunction {
        invocation_id: None,
        function_id: "f".into(),
        data: Some(data.into()),
        traceparent: None,
        baggage: None,
        action: None,
        metadata: None,
    };
    assert_eq!(Message::from(call).into_outbound(None, String::new()).pieces()[1].as_ptr(), place);
}
