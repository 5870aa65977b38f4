//! The router as a world of a few workers: tables of short stories, and properties of long random ones.

use std::collections::HashMap;

use engine_protocol::{
    Action, InvocationResult, InvokeFunction, Message, Payload, Reattach, RegisterFunction, RegisterTrigger,
    RegisterTriggerType, raw, with_caller,
};
use engine_router::{ConnId, Effect, Input, Opened, Router, Session};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

/// A router, and what each connection has been sent.
struct World {
    router: Router,
    sent: HashMap<u64, Vec<Message>>,
    next_call: u128,
}

impl World {
    fn new() -> Self {
        Self { router: Router::new("0.0.0", 7), sent: HashMap::new(), next_call: 1 }
    }

    fn step(&mut self, input: Input) {
        for effect in self.router.step(0, input) {
            if let Effect::Send { conn, mut message, caller } = effect {
                // As the engine does when it writes a call to its socket.
                if let (Message::InvokeFunction(call), Some(caller)) = (&mut message, caller) {
                    let spliced = call.data.take().map(|data| with_caller(data, &caller.to_string()));
                    call.data = spliced.transpose().expect("an object").map(Payload::from);
                }
                self.sent.entry(conn.0).or_default().push(message);
            }
        }
    }

    fn open(&mut self, conn: u64) {
        self.step(Input::Opened(Box::new(Opened {
            conn: ConnId(conn),
            worker: Uuid::from_u128(u128::from(conn)),
            reattach_token: format!("token-{conn}"),
            vm_worker: (conn == 9).then(|| "in-a-vm".to_owned()),
            isolation: None,
            address: None,
            session: Session::default(),
        })));
    }

    fn say(&mut self, conn: u64, message: Message) {
        self.step(Input::Received { conn: ConnId(conn), message });
    }

    fn register(&mut self, conn: u64, id: &str) {
        self.say(
            conn,
            Message::from(RegisterFunction {
                id: id.to_owned(),
                description: None,
                request_format: None,
                response_format: None,
                metadata: None,
                invocation: None,
            }),
        );
    }

    fn call(&mut self, conn: u64, id: &str, data: &Value, action: Option<Action>) -> Uuid {
        self.next_call += 1;
        let invocation = Uuid::from_u128(self.next_call);
        self.say(conn, invoke(Some(invocation), id, data, action));
        invocation
    }

    fn answer(&mut self, conn: u64, invocation: Uuid) {
        self.say(
            conn,
            Message::from(InvocationResult {
                invocation_id: invocation,
                function_id: String::new(),
                result: Some(raw(&json!("done")).expect("JSON").into()),
                error: None,
                traceparent: None,
                baggage: None,
            }),
        );
    }

    /// Calls that `conn` was asked to carry out.
    fn asked(&self, conn: u64) -> Vec<&InvokeFunction> {
        let sent = self.sent.get(&conn).into_iter().flatten();
        sent.filter_map(|message| match message {
            Message::InvokeFunction(call) => Some(&**call),
            _ => None,
        })
        .collect()
    }

    /// Answers that `conn` has had to a call: `Ok`, or the code of the error.
    fn answers(&self, conn: u64, invocation: Uuid) -> Vec<Result<(), String>> {
        let sent = self.sent.get(&conn).into_iter().flatten();
        sent.filter_map(|message| match message {
            Message::InvocationResult(result) if result.invocation_id == invocation => {
                Some(result.error.as_ref().map_or(Ok(()), |error| Err(error.code.clone())))
            }
            _ => None,
        })
        .collect()
    }
}

fn invoke(invocation_id: Option<Uuid>, id: &str, data: &Value, action: Option<Action>) -> Message {
    Message::from(InvokeFunction {
        invocation_id,
        function_id: id.to_owned(),
        data: Some(raw(data).expect("JSON").into()),
        traceparent: None,
        baggage: None,
        action,
        metadata: None,
    })
}

#[test]
fn functions_are_listed_by_prefix_search_and_worker_in_order_of_their_ids() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    for id in ["b::z", "a::x", "b::Y", "ba"] {
        world.register(2, id);
    }
    let mut listed = |question: &Value| {
        let call = world.call(1, "engine::functions::list", question, None);
        let sent = world.sent.get(&1).into_iter().flatten();
        let mut result = sent.filter_map(|message| match message {
            Message::InvocationResult(result) if result.invocation_id == call => result.result.as_ref(),
            _ => None,
        });
        let result: Value = serde_json::from_str(result.next_back().expect("an answer").text()).expect("JSON");
        let functions = result["functions"].as_array().expect("a list").iter();
        functions.map(|function| function["function_id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&json!({})), ["a::x", "b::Y", "b::z", "ba"]);
    assert_eq!(listed(&json!({ "prefix": "b::" })), ["b::Y", "b::z"]);
    assert_eq!(listed(&json!({ "prefix": "b::", "search": "y" })), ["b::Y"]);
    assert_eq!(listed(&json!({ "worker": "a" })), ["a::x"]);
    assert_eq!(listed(&json!({ "worker": "nobody" })), [""; 0]);
    let all = listed(&json!({ "include_internal": true }));
    assert!(all.is_sorted() && all.contains(&"engine::functions::list".to_owned()), "{all:?}");
    assert_eq!(
        listed(&json!({ "prefix": "engine::workers::", "include_internal": true, "search": "describes" })),
        ["engine::workers::info"]
    );
}

#[test]
fn a_call_reaches_the_owner_and_its_answer_the_caller() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.register(2, "a::b");
    let call = world.call(1, "a::b", &json!({ "x": 1 }), None);
    let asked = world.asked(2);
    assert_eq!(asked.len(), 1);
    let data: Value = serde_json::from_str(asked[0].data.as_ref().expect("data").text()).expect("JSON");
    assert_eq!(data, json!({ "_caller_worker_id": Uuid::from_u128(1), "x": 1 }));
    // Only the executor may answer.
    world.answer(1, call);
    assert_eq!(world.answers(1, call), []);
    world.answer(2, call);
    world.answer(2, call);
    assert_eq!(world.answers(1, call), [Ok(())]);
}

/// Ids of calls are the callers' choice: two of them, or the engine and one of them, may choose the same.
#[test]
fn an_id_that_is_used_again_does_not_get_the_answer_to_the_call_before() {
    let id = Uuid::from_u128(1);
    for engine_forgets in [false, true] {
        let mut world = World::new();
        for conn in 1..=3 {
            world.open(conn);
        }
        world.register(3, "a::b");
        if engine_forgets {
            let Message::InvokeFunction(call) = invoke(None, "a::b", &json!("first"), None) else { unreachable!() };
            world.step(Input::Call { call, answer: Some(id) });
            world.step(Input::Forget { answer: id });
        } else {
            world.say(1, invoke(Some(id), "a::b", &json!("first"), None));
            world.step(Input::Closed { conn: ConnId(1) });
        }
        world.say(2, invoke(Some(id), "a::b", &json!("second"), None));
        let [first, second] = world.asked(3)[..] else { panic!("two calls") };
        let (first, second) = (first.invocation_id.expect("an id"), second.invocation_id.expect("an id"));
        assert_ne!(first, second);
        world.answer(3, first);
        assert_eq!(world.answers(2, id), [], "the answer to another call");
        world.answer(3, second);
        assert_eq!(world.answers(2, id), [Ok(())]);
        world.say(2, invoke(Some(id), "a::b", &json!("third"), None));
        assert_eq!(world.asked(3)[2].invocation_id, Some(id), "the first was answered: its id is free again");
    }
}

#[test]
fn an_executor_that_comes_back_does_not_answer_another_call_than_it_was_asked() {
    let [first, left] = [1, 2].map(Uuid::from_u128);
    let mut world = World::new();
    for conn in 1..=4 {
        world.open(conn);
    }
    world.register(3, "a::b");
    world.say(1, invoke(Some(first), "a::b", &json!(1), None));
    world.say(4, invoke(Some(left), "a::b", &json!(2), None));
    world.step(Input::Closed { conn: ConnId(4) });
    world.open(5);
    let token = Some("token-3".to_owned());
    world.say(5, Message::Reattach(Reattach { previous_worker_id: Uuid::from_u128(3), reattach_token: token }));
    assert_eq!(world.answers(1, first), [Err("invocation_stopped".into())]);
    world.register(5, "a::b");
    for id in [first, left] {
        world.say(2, invoke(Some(id), "a::b", &json!(3), None));
        // What it had begun before, said on its new connection.
        world.answer(5, id);
        assert_eq!(world.answers(2, id), []);
    }
    let asked: Vec<Uuid> = world.asked(5).iter().filter_map(|call| call.invocation_id).collect();
    for id in asked {
        world.answer(5, id);
    }
    assert_eq!([first, left].map(|id| world.answers(2, id).len()), [1, 1]);
}

/// A caller that knows what the engine will call the next call, and calls its own so.
#[test]
fn an_id_of_the_engines_own_is_none_that_is_in_use() {
    let call_and_void = |world: &mut World, id: Uuid| {
        world.open(1);
        world.open(2);
        world.register(2, "a::b");
        world.say(1, invoke(Some(id), "a::b", &json!(1), None));
        world.call(1, "a::b", &json!(1), Some(Action::Void));
        let [first, second] = world.asked(2)[..] else { panic!("two calls") };
        assert_ne!(first.invocation_id, second.invocation_id);
        second.invocation_id.expect("an id")
    };
    let next = call_and_void(&mut World::new(), Uuid::from_u128(1));
    call_and_void(&mut World::new(), next);
}

/// Connection 9 comes from a VM.
#[test]
fn a_call_that_wants_no_answer_is_not_remembered_beyond_its_caller() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.register(2, "sink");
    for _ in 0..10 {
        world.call(1, "sink", &json!({}), Some(Action::Void));
    }
    assert_eq!(world.router.calls_in_flight(), 10);
    world.step(Input::Closed { conn: ConnId(1) });
    assert_eq!(world.router.calls_in_flight(), 0);
}

#[test]
fn news_that_are_never_answered_are_remembered_up_to_a_limit() {
    let mut world = World::new();
    world.open(1);
    world.register(1, "news");
    let binding = RegisterTrigger {
        id: "t".into(),
        trigger_type: "engine::workers-available".into(),
        function_id: "news".into(),
        config: None,
        metadata: None,
    };
    world.say(1, binding.into());
    for conn in 2..4000 {
        world.open(conn);
    }
    assert_eq!(world.asked(1).len(), 3998);
    assert_eq!(world.router.calls_in_flight(), 1024);
    // One that is answered leaves room for another one, and for no more than that.
    let first = world.asked(1)[0].invocation_id.expect("an id");
    world.answer(1, first);
    world.answer(1, first);
    assert_eq!(world.router.calls_in_flight(), 1023);
    for conn in 4000..4010 {
        world.open(conn);
    }
    assert_eq!(world.router.calls_in_flight(), 1024);
}

#[test]
fn a_trace_context_that_is_too_long_is_left_out() {
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.register(2, "f");
    for (length, is_kept) in [(200, true), (9000, false)] {
        let Message::InvokeFunction(mut call) = invoke(None, "f", &json!({}), Some(Action::Void)) else {
            panic!("a call")
        };
        call.traceparent = Some("x".repeat(length));
        call.baggage = Some("x".repeat(length));
        world.say(1, Message::InvokeFunction(call));
        let asked = world.asked(2).pop().expect("a call");
        assert_eq!((asked.traceparent.is_some(), asked.baggage.is_some()), (is_kept, is_kept), "{length}");
    }
}

#[test]
fn a_guest_neither_commands_the_host_nor_stands_in_for_the_daemons() {
    let mut world = World::new();
    for conn in [1, 2, 9] {
        world.open(conn);
    }
    for id in ["worker::add", "worker::list", "sandbox::run"] {
        world.register(2, id);
        world.register(9, id);
    }
    let refused = world.call(9, "worker::add", &json!({}), None);
    assert_eq!(world.answers(9, refused), [Err("FORBIDDEN".to_owned())]);
    world.call(9, "worker::add", &json!({}), Some(Action::Void));
    assert_eq!(world.asked(2).len(), 0);
    world.call(9, "worker::list", &json!({}), None);
    world.call(1, "sandbox::run", &json!({}), None);
    world.call(1, "worker::add", &json!({}), None);
    assert_eq!((world.asked(2).len(), world.asked(9).len()), (3, 0));
}

#[test]
fn a_call_to_a_function_nobody_owns_is_answered_at_once() {
    let mut world = World::new();
    world.open(1);
    let call = world.call(1, "no::such", &json!(null), None);
    assert_eq!(world.answers(1, call), [Err("function_not_found".into())]);
    let void = world.call(1, "no::such", &json!(null), Some(Action::Void));
    assert_eq!(world.answers(1, void), []);
    let queued = world.call(1, "no::such", &json!(null), Some(Action::Enqueue { queue: "q".into() }));
    assert_eq!(world.answers(1, queued), [Err("enqueue_error".into())]);
}

#[test]
fn the_newest_provider_is_asked_and_the_older_one_when_it_leaves() {
    let mut world = World::new();
    for conn in 1..=3 {
        world.open(conn);
    }
    world.register(2, "a::b");
    world.register(3, "a::b");
    let stopped = world.call(1, "a::b", &json!(1), None);
    assert_eq!((world.asked(2).len(), world.asked(3).len()), (0, 1));
    world.step(Input::Closed { conn: ConnId(3) });
    assert_eq!(world.answers(1, stopped), [Err("invocation_stopped".into())]);
    world.call(1, "a::b", &json!(1), None);
    assert_eq!(world.asked(2).len(), 1);
}

#[test]
fn nobody_takes_over_the_engines_own_functions() {
    let mut world = World::new();
    world.open(1);
    world.register(1, "engine::workers::list");
    let call = world.call(1, "engine::workers::list", &json!({}), None);
    assert_eq!((world.asked(1).len(), world.answers(1, call)), (0, vec![Ok(())]));
}

#[test]
fn triggers_wait_for_their_type_and_are_told_when_they_end() {
    let trigger = || {
        Message::from(RegisterTrigger {
            id: "t".into(),
            trigger_type: "mail::in".into(),
            function_id: "f".into(),
            config: None,
            metadata: None,
        })
    };
    let kind = || {
        Message::RegisterTriggerType(RegisterTriggerType {
            id: "mail::in".into(),
            description: None,
            trigger_request_format: None,
            call_request_format: None,
        })
    };
    let mut world = World::new();
    world.open(1);
    world.open(2);
    world.say(1, trigger());
    let refused = |message: &Message| matches!(message, Message::TriggerRegistrationResult(r) if r.error.is_some());
    assert!(world.sent[&1].iter().any(refused));
    world.say(2, kind());
    assert!(world.sent[&2].iter().any(|message| matches!(message, Message::RegisterTrigger(t) if t.id == "t")));
    world.step(Input::Closed { conn: ConnId(1) });
    assert!(world.sent[&2].iter().any(|message| matches!(message, Message::UnregisterTrigger(t) if t.id == "t")));
}

#[test]
fn a_vms_worker_has_the_vms_name_whatever_it_says() {
    let mut world = World::new();
    world.open(1);
    world.open(9);
    let about = json!({ "name": "somebody-else", "pid": 1, "runtime": "python" });
    world.call(9, "engine::workers::register", &about, Some(Action::Void));
    let good = world.call(1, "engine::workers::info", &json!({ "name": "in-a-vm" }), None);
    let bad = world.call(1, "engine::workers::info", &json!({ "name": "somebody-else" }), None);
    assert_eq!(world.answers(1, good), [Ok(())]);
    assert_eq!(world.answers(1, bad), [Err("NOT_FOUND".into())]);
}

#[test]
fn reattaching_takes_the_token() {
    let reattach = |token: &str| {
        Message::Reattach(Reattach { previous_worker_id: Uuid::from_u128(1), reattach_token: Some(token.into()) })
    };
    let mut world = World::new();
    world.open(1);
    world.register(1, "a::b");
    world.open(2);
    world.say(2, reattach("a guess"));
    world.open(3);
    world.call(3, "a::b", &json!(1), None);
    assert_eq!(world.asked(1).len(), 1, "a wrong token changes nothing");
    world.open(4);
    world.say(4, reattach("token-1"));
    let call = world.call(3, "a::b", &json!(1), None);
    assert_eq!(world.answers(3, call), [Err("function_not_found".into())]);
}

#[derive(Debug, Clone)]
enum Act {
    Open(u64),
    Close(u64),
    Register(u64, u8),
    Call(u64, u8),
    Answer(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let conn = 1..5u64;
    prop_oneof![
        conn.clone().prop_map(Act::Open),
        conn.clone().prop_map(Act::Close),
        (conn.clone(), 0..3u8).prop_map(|(conn, id)| Act::Register(conn, id)),
        (conn.clone(), 0..3u8).prop_map(|(conn, id)| Act::Call(conn, id)),
        conn.prop_map(Act::Answer),
    ]
}

proptest! {
    /// Whatever happens in whatever order, each call gets exactly one answer once all executors have left; unless its
    /// caller left first, and then none more.
    #[test]
    fn every_call_is_answered_once(acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::new();
        let mut open = [false; 5];
        let mut calls: Vec<(u64, Uuid, bool)> = Vec::new();
        for act in acts {
            match act {
                Act::Open(conn) if !open[conn as usize] => { open[conn as usize] = true; world.open(conn); }
                Act::Close(conn) if open[conn as usize] => {
                    open[conn as usize] = false;
                    world.step(Input::Closed { conn: ConnId(conn) });
                    for call in &mut calls {
                        call.2 |= call.0 == conn;
                    }
                }
                Act::Register(conn, id) if open[conn as usize] => world.register(conn, &format!("f::{id}")),
                Act::Call(conn, id) if open[conn as usize] => {
                    let call = world.call(conn, &format!("f::{id}"), &json!(1), None);
                    calls.push((conn, call, false));
                }
                Act::Answer(conn) if open[conn as usize] => {
                    let asked: Vec<Uuid> = world.asked(conn).iter().filter_map(|call| call.invocation_id).collect();
                    for id in asked {
                        world.answer(conn, id);
                    }
                }
                _ => {}
            }
        }
        // A caller stays until the end; executors leave.
        for conn in 1..5u64 {
            if open[conn as usize] {
                let ids: Vec<Uuid> = world.asked(conn).iter().filter_map(|call| call.invocation_id).collect();
                for id in ids {
                    world.answer(conn, id);
                }
            }
        }
        for (conn, call, caller_left) in calls {
            let count = world.answers(conn, call).len();
            prop_assert!(if caller_left { count <= 1 } else { count == 1 }, "{count} answers to {call} of {conn}");
        }
    }
}
