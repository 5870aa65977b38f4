//! `iii trigger` (points 7 and 9 to 13).

use std::time::Duration;

use engine_client::{Call, Client, ClientConfig, ErrorBody, FunctionSpec};
use serde_json::{Value, json};
use test_rig::{Answer, Rig, eventually, free_port};
use tokio::runtime::Runtime;

use crate::person::{Person, check};

const PATIENCE: Duration = Duration::from_secs(60);

/// An engine, and a worker in this process.
struct Stage {
    rig: Rig,
    _client: Client,
    _runtime: Runtime,
}

impl Stage {
    fn new() -> Self {
        let rig = Rig::builder().start_engine_only();
        let runtime = Runtime::new().expect("a runtime");
        let guard = runtime.enter();
        let client = Client::connect(ClientConfig { url: rig.url(), name: "stage".to_owned(), description: None });
        offer(&client);
        drop(guard);
        let stage = Self { rig, _client: client, _runtime: runtime };
        let there = eventually(PATIENCE, || (stage.trigger(&["stage::last"]).status == 0).then_some(()));
        assert!(there.is_some(), "the worker did not register");
        stage
    }

    fn trigger(&self, words: &[&str]) -> Answer {
        let port = self.rig.port().to_string();
        self.rig.iii(&[&["trigger", "--port", &port], words].concat())
    }
}

fn offer(client: &Client) {
    let spec = |id: &str| FunctionSpec { id: id.to_owned(), ..FunctionSpec::default() };
    client.register(spec("stage::echo"), |call: Call| async move { Ok(Some(call.data)) });
    client.register(spec("stage::nothing"), |_: Call| async { Ok(None) });
    client.register(spec("stage::fails"), |_: Call| async {
        Err(ErrorBody::new("boom", "it \u{1b}[31mfailed\u{9b}\u{202e}\nbadly"))
    });
    client.register(spec("stage::slow"), |_: Call| std::future::pending());
    let hostile = FunctionSpec {
        id: "stage::quote".to_owned(),
        description: "Quotes\u{1b}[2J\u{2066} a price".to_owned(),
        request_format: Some(json!({
            "type": "object",
            "required": ["sku"],
            "properties": {
                "sku": { "$ref": "#/$defs/Sku" },
                "tags": { "type": "array", "items": { "type": "string" }, "description": "More\u{1b}]0;x\u{7}\nof\tit" },
                "qty": { "type": ["integer", "null"] },
                "n\u{202e}ame": {},
            },
            "$defs": { "Sku": { "type": "string", "description": "Which one" } },
        })),
        ..FunctionSpec::default()
    };
    client.register(hostile, |call: Call| async move { Ok(Some(call.data)) });
    client.register(spec("stage::last"), |_: Call| async { Ok(None) });
}

/// What a function was given, less what the engine adds to an object.
fn given(answer: &Answer) -> Value {
    let mut value = json_of(&answer.stdout);
    if let Value::Object(fields) = &mut value {
        fields.remove("_caller_worker_id").expect("the engine names the caller");
    }
    value
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

#[test]
fn a_payload_is_json_and_fields_and_the_result_alone_is_on_stdout() {
    let stage = Stage::new();
    for (words, expected) in [
        (&[][..], json!({})),
        (&["--json", "[1,null]"], json!([1, null])),
        (&["--json", "7"], json!(7)),
        (
            &["n=3", "ok=true", "tags=[\"a\",\"b\"]", "s=\"7\""],
            json!({"n": 3, "ok": true, "tags": ["a", "b"], "s": "7"}),
        ),
        (&["x=null", "text=A-17", "e=a=b", "empty="], json!({"x": null, "text": "A-17", "e": "a=b", "empty": ""})),
        (&["a.b=1", "a.b=2"], json!({"a.b": 2})),
        (&["--json", "{\"sku\":\"A\",\"qty\":1}", "qty=12"], json!({"sku": "A", "qty": 12})),
    ] {
        let answer = stage.trigger(&[&["stage::echo"], words].concat());
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{answer:?}");
        assert_eq!(given(&answer), expected, "{words:?}");
    }
    let answer = stage.trigger(&["stage::echo", "--json", "[{\"a\":1}]"]);
    assert_eq!(answer.stdout, "[\n  {\n    \"a\": 1\n  }\n]\n");
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    check(&stage.trigger(&["stage::echo", "--json", &deep]), 0, &["1"], &[]);
}

#[test]
fn nothing_is_printed_for_nothing() {
    let stage = Stage::new();
    check(&stage.trigger(&["stage::nothing"]), 0, &[], &[]);
    check(&stage.trigger(&["stage::echo", "--json", "null"]), 0, &[], &[]);
}

#[test]
fn a_remote_error_is_json_on_stderr_without_what_moves_a_cursor() {
    let stage = Stage::new();
    for (function, code) in [("stage::fails", "boom"), ("stage::none", "function_not_found")] {
        let answer = stage.trigger(&[function]);
        check(&answer, 1, &[], &["Error: "]);
        let (_, body) = answer.stderr.split_once("Error: ").expect("a prefix");
        let body = json_of(body);
        assert_eq!(body["code"], code);
        assert!(body["message"].is_string() && body["stacktrace"].is_null(), "{body}");
        assert!(!answer.stderr.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{answer:?}");
    }
}

#[test]
fn a_call_without_an_answer_ends_in_time_and_asks_for_the_engine() {
    let stage = Stage::new();
    let answer = stage.trigger(&["stage::slow", "--timeout-ms", "300"]);
    check(&answer, 1, &[], &["error: no response from `stage::slow`", "does the engine run at this address and port"]);
}

#[test]
fn what_is_no_call_is_refused_before_any_connection() {
    let person = Person::new();
    for (words, reason) in [
        (&[][..], "missing FUNCTION_PATH"),
        (&["a::b", "--json", "{"], "--json: invalid JSON"),
        (&["a::b", "--json", "[1]", "a=1"], "--json must be an object"),
        (&["a::b", "word"], "expected key=value, got `word`"),
        (&["a::b", "=1"], "empty key"),
    ] {
        check(&person.iii(&[&["trigger"], words].concat()), 1, &[], &["error: ", reason]);
    }
}

#[test]
fn a_function_tells_what_it_takes_and_its_text_is_clean() {
    let stage = Stage::new();
    let answer = stage.trigger(&["stage::quote", "--help"]);
    let rows = [
        "Quotes[2J a price\n",
        "Usage: iii trigger stage::quote",
        "  name  type           required  description\n",
        "  sku   string         yes       Which one\n",
        "  tags  array<string>  no        More]0;x of it\n",
        "  qty   integer|null   no\n",
        "  name  any            no\n",
        "--timeout-ms",
    ];
    check(&answer, 0, &rows, &[]);
    assert!(!answer.stdout.contains(['\u{1b}', '\u{7}', '\u{202e}', '\u{2066}', '\t']), "{answer:?}");
    check(&stage.trigger(&["stage::echo", "--help"]), 0, &["no request schema"], &[]);
}

#[test]
fn an_unknown_function_has_no_help_but_a_hint() {
    let stage = Stage::new();
    let answer = stage.trigger(&["nope::fn", "--help"]);
    check(&answer, 1, &[], &["error: ", "nope::fn", "run `iii trigger engine::functions::list`"]);
}

#[test]
fn without_an_engine_there_is_the_commands_own_help() {
    let person = Person::new();
    let port = free_port().to_string();
    let answer = person.iii(&["trigger", "nope::fn", "--help", "--port", &port]);
    check(&answer, 0, &["Usage: iii trigger", "--timeout-ms"], &["warning: "]);
    check(&person.iii(&["trigger", "--help"]), 0, &["Usage: iii trigger", "--timeout-ms"], &[]);
    let answer = person.iii(&["trigger", "nope::fn", "--port", &port]);
    check(&answer, 1, &[], &["error: could not connect", &port]);
}
