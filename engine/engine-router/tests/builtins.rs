//! Workers in the engine's own process, the engine's own calls, and workers of guarded listeners.

use std::collections::HashSet;
use std::sync::Arc;

use engine_protocol::{
    Action, InvocationResult, InvokeFunction, Message, RegisterFunction, RegisterTrigger, RegisterTriggerType, raw,
};
use engine_router::{ConnId, Effect, Expose, Input, Installed, Opened, Pattern, Policy, Router, Session};
use serde_json::{Value, json};
use uuid::Uuid;

const BUILTIN: ConnId = ConnId(100);
const OPEN: ConnId = ConnId(1);
const GUARDED: ConnId = ConnId(2);
const GUEST: ConnId = ConnId(9);

fn function(id: &str, metadata: Option<Value>) -> RegisterFunction {
    RegisterFunction {
        id: id.into(),
        description: None,
        request_format: None,
        response_format: None,
        metadata: metadata.map(|metadata| raw(&metadata).expect("JSON")),
        invocation: None,
    }
}

fn invoke(id: &str, data: Value) -> InvokeFunction {
    InvokeFunction {
        invocation_id: Some(Uuid::from_u128(7)),
        function_id: id.into(),
        data: Some(raw(&data).expect("JSON").into()),
        traceparent: None,
        baggage: None,
        action: None,
        metadata: None,
    }
}

fn trigger(id: &str, kind: &str, function_id: &str, config: Value) -> Message {
    Message::from(RegisterTrigger {
        id: id.into(),
        trigger_type: kind.into(),
        function_id: function_id.into(),
        config: Some(raw(&config).expect("JSON")),
        metadata: None,
    })
}

fn answer(id: Uuid, result: Value) -> Message {
    Message::from(InvocationResult {
        invocation_id: id,
        function_id: String::new(),
        result: Some(raw(&result).expect("JSON").into()),
        error: None,
        traceparent: None,
        baggage: None,
    })
}

fn open(router: &mut Router, conn: ConnId, session: Session) {
    router.step(
        0,
        Input::Opened(Box::new(Opened {
            conn,
            worker: Uuid::from_u128(u128::from(conn.0)),
            reattach_token: String::new(),
            vm_worker: (conn == GUEST).then(|| "in-a-vm".to_owned()),
            isolation: None,
            address: None,
            session,
        })),
    );
}

/// A router with a built-in worker, and connections with and without rules.
fn router(session: Session) -> Router {
    let mut router = Router::new("0", 7);
    open(&mut router, OPEN, Session::default());
    open(&mut router, GUARDED, session);
    open(&mut router, GUEST, Session::default());
    router.step(
        0,
        Input::Installed(Box::new(Installed {
            conn: BUILTIN,
            worker: Uuid::from_u128(100),
            name: "iii-state",
            functions: vec![function("state::get", None), function("iii-queue::enqueue", None)],
            trigger_types: vec![RegisterTriggerType {
                id: "state".into(),
                description: None,
                trigger_request_format: None,
                call_request_format: None,
            }],
        })),
    );
    router
}

fn guarded() -> Session {
    let policy = Policy {
        allowed_functions: HashSet::from(["named".to_owned()]),
        forbidden_functions: HashSet::from(["api::secret".to_owned()]),
        expose: vec![Expose::Id(Pattern::parse("match('api::*')").expect("a pattern"))],
        allowed_trigger_types: Some(HashSet::from(["state".to_owned()])),
        may_register_functions: true,
        may_register_trigger_types: false,
        prefix: Some("t7".to_owned()),
        context: json!({ "user": "kim" }),
    };
    Session { policy: Some(Arc::new(policy)), middleware: None }
}

fn receive(router: &mut Router, conn: ConnId, message: Message) -> Vec<Effect> {
    router.step(0, Input::Received { conn, message })
}

fn refusal(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: Message::InvocationResult(result), .. } => Some(result.error.as_ref()?.code.clone()),
        Effect::Send { message: Message::TriggerRegistrationResult(result), .. } => {
            Some(result.error.as_ref()?.code.clone())
        }
        _ => None,
    })
}

#[test]
fn a_built_in_worker_is_called_without_a_socket_and_answers_once() {
    let mut router = router(Session::default());
    let effects = receive(&mut router, OPEN, Message::from(invoke("state::get", json!({ "a": 1 }))));
    let [Effect::Call { conn, call, caller }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((*conn, *caller), (BUILTIN, Some(Uuid::from_u128(1))));
    assert_eq!(call.data.as_ref().expect("data").text(), r#"{"a":1}"#, "nothing is put into it");
    let id = call.invocation_id.expect("an id");
    assert_eq!(receive(&mut router, OPEN, answer(id, json!(2))).len(), 0, "only the executor answers");
    assert_eq!(receive(&mut router, BUILTIN, answer(id, json!(2))).len(), 1);
    assert_eq!(receive(&mut router, BUILTIN, answer(id, json!(2))).len(), 0);
    assert_eq!((router.counts().calls, router.counts().succeeded), (1, 1));
}

#[test]
fn the_engine_calls_and_is_answered_whether_or_not_the_function_is_there() {
    let mut router = router(Session::default());
    let asked = Uuid::from_u128(50);
    let effects = router.step(0, Input::Call { call: Box::new(invoke("nobody::has", json!(1))), answer: Some(asked) });
    let [Effect::Answered { answer: told, result: Err(error) }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((*told, error.code.as_str()), (asked, "function_not_found"));
    receive(&mut router, OPEN, Message::from(function("a::b", None)));
    let effects = router.step(0, Input::Call { call: Box::new(invoke("a::b", json!(1))), answer: Some(asked) });
    let [Effect::Send { message: Message::InvokeFunction(call), caller: None, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    let id = call.invocation_id.expect("an id");
    let effects = receive(&mut router, OPEN, answer(id, json!("done")));
    let [Effect::Answered { result: Ok(Some(result)), .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(result.text(), "\"done\"");
    // One whose worker leaves is answered too, and one that was forgotten is not.
    for forget in [false, true] {
        open(&mut router, ConnId(5), Session::default());
        receive(&mut router, ConnId(5), Message::from(function("leaves", None)));
        router.step(0, Input::Call { call: Box::new(invoke("leaves", json!(1))), answer: Some(asked) });
        if forget {
            router.step(0, Input::Forget { answer: asked });
        }
        let effects = router.step(0, Input::Closed { conn: ConnId(5) });
        assert_eq!(effects.iter().any(|effect| matches!(effect, Effect::Answered { .. })), !forget);
    }
}

#[test]
fn bindings_reach_a_built_in_worker_also_those_made_before_it_came() {
    let mut router = Router::new("0", 7);
    open(&mut router, OPEN, Session::default());
    let effects = receive(&mut router, OPEN, trigger("early", "state", "a::b", json!({})));
    assert_eq!(refusal(&effects).as_deref(), Some("trigger_type_not_found"));
    let installed = Installed {
        conn: BUILTIN,
        worker: Uuid::nil(),
        name: "iii-state",
        functions: Vec::new(),
        trigger_types: vec![RegisterTriggerType {
            id: "state".into(),
            description: None,
            trigger_request_format: None,
            call_request_format: None,
        }],
    };
    let effects = router.step(0, Input::Installed(Box::new(installed)));
    assert!(matches!(&effects[..], [Effect::Bind { trigger, .. }] if trigger.id == "early"), "{effects:?}");
    let effects = receive(&mut router, OPEN, trigger("late", "state", "a::b", json!({})));
    assert!(matches!(&effects[..], [Effect::Bind { owner: Some(_), vm: None, .. }]), "{effects:?}");
    open(&mut router, GUEST, Session::default());
    let effects = receive(&mut router, GUEST, trigger("guest's", "state", "a::b", json!({})));
    assert!(matches!(&effects[..], [Effect::Bind { vm: Some(vm), .. }] if vm == "in-a-vm"), "{effects:?}");
    // An id that moves to another type is not bound twice.
    receive(
        &mut router,
        OPEN,
        Message::RegisterTriggerType(RegisterTriggerType {
            id: "mine".into(),
            description: None,
            trigger_request_format: None,
            call_request_format: None,
        }),
    );
    let effects = receive(&mut router, OPEN, trigger("late", "mine", "a::b", json!({})));
    let unbound = |effect: &Effect| matches!(effect, Effect::Unbind { id, .. } if id == "late");
    assert!(effects.iter().any(unbound), "{effects:?}");
    let effects = router.step(0, Input::Closed { conn: OPEN });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unbind { id, .. } if id == "early")));
}

#[test]
fn enqueue_goes_to_the_queue_worker_whether_or_not_the_function_is_there() {
    let mut router = router(Session::default());
    let action = Some(Action::Enqueue { queue: "mail".into() });
    let call = InvokeFunction { action: action.clone(), ..invoke("nobody::has", json!({ "n": 1.50 })) };
    let effects = receive(&mut router, OPEN, Message::from(call));
    let [Effect::Call { call, .. }] = &effects[..] else { panic!("{effects:?}") };
    let wrapped: Value = serde_json::from_str(call.data.as_ref().expect("data").text()).expect("JSON");
    assert_eq!(wrapped, json!({ "queue": "mail", "function_id": "nobody::has", "data": { "n": 1.5 } }));
    let effects = receive(&mut router, OPEN, Message::from(invoke("iii-queue::enqueue", json!({}))));
    assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"), "not to be called by hand");
    let call = InvokeFunction { action, ..invoke("worker::add", json!({})) };
    let effects = receive(&mut router, GUEST, Message::from(call));
    assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"), "a queue is no way around");
}

#[test]
fn a_guarded_worker_calls_what_is_open_and_registers_under_its_prefix() {
    let mut router = router(guarded());
    for id in ["api::open", "api::secret", "named", "other"] {
        receive(&mut router, OPEN, Message::from(function(id, None)));
    }
    for (id, allowed) in
        [("api::open", true), ("named", true), ("api::secret", false), ("other", false), ("state::get", false)]
    {
        let call = InvokeFunction { invocation_id: None, ..invoke(id, json!({})) };
        let effects = receive(&mut router, GUARDED, Message::from(call));
        assert_eq!(refusal(&effects).as_deref() != Some("FORBIDDEN"), allowed, "{id}: {effects:?}");
    }
    let list = invoke("engine::functions::list", json!({}));
    let effects = receive(&mut router, GUARDED, Message::from(list));
    assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"), "discovery has to be allowed, too");
    // What it registers has its prefix for others, and not for itself.
    receive(&mut router, GUARDED, Message::from(function("mine", None)));
    let effects = receive(&mut router, OPEN, Message::from(invoke("t7::mine", json!({}))));
    let [Effect::Send { conn: GUARDED, message: Message::InvokeFunction(call), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(call.function_id, "mine");
    let id = call.invocation_id.expect("an id");
    let effects = receive(&mut router, GUARDED, answer(id, json!(1)));
    let [Effect::Send { message: Message::InvocationResult(result), .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(result.function_id, "t7::mine");
    let effects = receive(&mut router, GUARDED, trigger("t", "state", "mine", json!({})));
    assert!(matches!(&effects[..], [Effect::Bind { trigger, .. }] if trigger.function_id == "t7::mine"), "{effects:?}");
    assert!(receive(&mut router, GUARDED, trigger("u", "http", "mine", json!({}))).is_empty(), "without a word");
    let kind = RegisterTriggerType {
        id: "own".into(),
        description: None,
        trigger_request_format: None,
        call_request_format: None,
    };
    receive(&mut router, GUARDED, Message::RegisterTriggerType(kind));
    let effects = receive(&mut router, OPEN, trigger("v", "own", "x", json!({})));
    assert_eq!(refusal(&effects).as_deref(), Some("trigger_type_not_found"));
}

#[test]
fn middleware_stands_in_for_what_is_called() {
    let session = Session { middleware: Some("gate".to_owned()), ..guarded() };
    let mut router = router(session);
    for id in ["api::open", "gate"] {
        receive(&mut router, OPEN, Message::from(function(id, None)));
    }
    let call = InvokeFunction {
        action: Some(Action::Enqueue { queue: "q".into() }),
        ..invoke("api::open", json!({ "n": 1.50 }))
    };
    let effects = receive(&mut router, GUARDED, Message::from(call));
    let [Effect::Send { message: Message::InvokeFunction(call), caller: None, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(call.function_id, "gate");
    assert_eq!(
        call.data.as_ref().expect("data").text(),
        r#"{"function_id":"api::open","payload":{"n":1.5},"action":{"type":"enqueue","queue":"q"},"context":{"user":"kim"}}"#
    );
    let id = call.invocation_id.expect("an id");
    let effects = receive(&mut router, OPEN, answer(id, json!("gated")));
    let [Effect::Send { conn: GUARDED, message: Message::InvocationResult(result), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(result.function_id, "api::open");
}

#[test]
fn a_guest_neither_changes_settings_nor_stands_in_for_a_built_in_worker() {
    let mut router = router(Session::default());
    let engines = json!({ "id": "iii-http" });
    for id in ["configuration::set", "configuration::get", "bridge.invoke", "worker::add"] {
        let effects = receive(&mut router, GUEST, Message::from(invoke(id, engines.clone())));
        assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"), "{id}");
    }
    let own = invoke("configuration::set", json!({ "id": "greeter" }));
    let effects = receive(&mut router, GUEST, Message::from(own));
    assert_eq!(refusal(&effects).as_deref(), Some("function_not_found"), "an entry of its own is not refused");
    for id in ["stream::set(orders)", "iii::durable::publish", "publish"] {
        receive(&mut router, GUEST, Message::from(function(id, None)));
        assert!(!router.knows(id), "{id}");
    }
    // Nor does it take a function over from a host's worker, or one that decides who comes in.
    receive(&mut router, OPEN, Message::from(function("shop::quote", None)));
    receive(&mut router, GUEST, Message::from(function("shop::quote", None)));
    let effects = receive(&mut router, OPEN, Message::from(invoke("shop::quote", json!({}))));
    assert!(matches!(&effects[..], [Effect::Send { conn: OPEN, .. }]), "{effects:?}");
    router.protect(HashSet::from(["gate::auth".to_owned()]));
    receive(&mut router, GUEST, Message::from(function("gate::auth", None)));
    assert!(!router.knows("gate::auth"));
    receive(&mut router, GUEST, Message::from(function("state::get", None)));
    let effects = receive(&mut router, OPEN, Message::from(invoke("state::get", json!({}))));
    assert!(matches!(&effects[..], [Effect::Call { .. }]), "{effects:?}");
    // Nor does it have somebody else call for it, or the queue's private function at all.
    let effects = receive(&mut router, OPEN, trigger("q", "state", "iii-queue::enqueue", json!({})));
    assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"));
    for config in
        [json!({ "condition_function_id": "worker::add" }), json!({ "middleware_function_ids": ["worker::add"] })]
    {
        let effects = receive(&mut router, GUEST, trigger("t", "state", "own::f", config));
        assert_eq!(refusal(&effects).as_deref(), Some("FORBIDDEN"));
    }
}

#[test]
fn nobody_takes_the_names_of_built_in_workers() {
    let mut router = router(Session::default());
    for (id, taken) in
        [("iii-http::on-config-change", false), ("engine::mine", false), ("iii-scorer::score", true), ("a", true)]
    {
        receive(&mut router, OPEN, Message::from(function(id, None)));
        assert_eq!(router.knows(id), taken, "{id}");
    }
}
