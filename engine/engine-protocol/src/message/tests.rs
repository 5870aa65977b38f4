//! To the letter, and in one pass as in the thorough way.

use proptest::prelude::*;

use super::*;

#[test]
fn a_payload_is_passed_on_to_the_letter() {
    let text = r#"{"type":"invokefunction","function_id":"a::b","data":{"b": 1.50, "a":[ ]},"extra":1}"#;
    let Message::InvokeFunction(call) = decode(text).expect("a message") else { panic!("another message") };
    assert_eq!(call.data.as_ref().expect("data").text(), r#"{"b": 1.50, "a":[ ]}"#);
    let written = Message::InvokeFunction(call).encode();
    assert_eq!(written, r#"{"type":"invokefunction","function_id":"a::b","data":{"b": 1.50, "a":[ ]}}"#);
}

#[test]
fn a_call_without_data_is_written_with_null() {
    let Message::InvokeFunction(call) = decode(r#"{"type":"invokefunction","function_id":"f"}"#).expect("a message")
    else {
        panic!("another message")
    };
    assert_eq!(Message::InvokeFunction(call).encode(), r#"{"type":"invokefunction","function_id":"f","data":null}"#);
}

#[test]
fn what_is_no_message_is_named() {
    assert!(matches!(decode("[]"), Err(DecodeError::Envelope { .. })));
    assert!(matches!(decode(r#"{"type":"nope"}"#), Err(DecodeError::UnknownType(kind)) if kind == "nope"));
    assert!(matches!(decode(r#"{"type":"registerfunction"}"#), Err(DecodeError::Field { .. })));
}
/// Names that matter and some that do not, values that fit and values that do not, some of them spelled oddly.
fn member() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "type",
        "invocation_id",
        "function_id",
        "data",
        "result",
        "error",
        "traceparent",
        "baggage",
        "action",
        "metadata",
        "extra",
        r"\u0074ype",
        r"d\u0061ta",
        "",
    ]);
    let value = prop::sample::select(vec![
        "null",
        "1",
        r#""""#,
        r#""a::b""#,
        r#""a\u003a:b""#,
        r#""ä""#,
        r#""\ud800""#,
        r#""5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11""#,
        r#""5b0c1c7e5a834d2c9a446a2f0f6a7c11""#,
        r#"{"type":"void"}"#,
        r#"{"type":"enqueue","queue":"q"}"#,
        r#"{"type":"x"}"#,
        r#"{"code":"c","message":"m"}"#,
        r#"{"code":"c"}"#,
        r#"[1 , 1e999, "\ud800"]"#,
        r#"{ "a" :1.50}"#,
        "tru",
        r#""\x""#,
        "[}",
    ]);
    (name, value, "[ \n]{0,2}")
        .prop_map(|(name, value, space)| format!("{space}\"{name}\"{space}:{space}{value}{space}"))
}

fn message() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec![
        r#""invokefunction""#,
        r#""invocationresult""#,
        r#""ping""#,
        r#""invokefunctio\u006e""#,
    ]);
    let usual = prop::sample::select(vec![
        r#""function_id":"f""#,
        r#""invocation_id":"5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11""#,
        r#""data":{"a":[1]}"#,
    ]);
    let members = prop::collection::vec(prop_oneof![3 => usual.prop_map(str::to_owned), 2 => member()], 0..6);
    let edges = prop::sample::select(vec![("{", "}"), (" {", "} "), ("{", "}}"), ("{", ",}"), ("[", "]"), ("{", "")]);
    (kind, members, any::<prop::sample::Index>(), edges).prop_map(|(kind, mut members, at, (open, close))| {
        members.insert(at.index(members.len() + 1), format!("\"type\":{kind}"));
        format!("{open}{}{close}", members.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// What one pass reads is what the thorough way reads.
    #[test]
    fn one_pass_is_as_good_as_two(text in message()) {
        if let Some(message) = shallow::read(&text, None) {
            let thorough = decode_thoroughly(&text);
            prop_assert!(thorough.is_ok(), "{text}: {thorough:?}");
            prop_assert_eq!(format!("{message:?}"), format!("{:?}", thorough.expect("a message")), "{}", text);
        }
    }

    #[test]
    fn any_text_is_taken(text in prop_oneof![r#"\{"type":[\[\]{},:"\\untype0-9 ä]{0,40}"#, ".*"]) {
        if let Some(message) = shallow::read(&text, None) {
            prop_assert_eq!(format!("{message:?}"), format!("{:?}", decode_thoroughly(&text).expect("a message")));
        }
    }
}

/// The usual spelling is what the published SDKs write: it must not take the long way.
#[test]
fn calls_and_answers_are_read_in_one_pass() {
    for text in [
        r#"{"type":"invokefunction","invocation_id":"5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11","function_id":"a::b","data":{"a":[1,null]},"traceparent":"00-a-b-01","action":{"type":"void"}}"#,
        r#"{"function_id":"f","data":null,"type":"invokefunction","extra":{"a":1}}"#,
        r#"{"type":"invocationresult","invocation_id":"5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11","function_id":"a::b","result":"x\n"}"#,
        r#"{"type": "invocationresult", "invocation_id": "5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11", "error": {"code": "c", "message": "m\n"}}"#,
    ] {
        assert!(shallow::read(text, None).is_some(), "{text}");
    }
}
