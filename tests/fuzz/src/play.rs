//! Target `router`: a byte string as a story of workers that come, register, call, answer, lie and leave.

use std::collections::HashSet;
use std::sync::Arc;

use engine_protocol::{
    Action, ErrorBody, InvocationResult, InvokeFunction, Message, Payload, Reattach, RegisterFunction, RegisterTrigger,
    RegisterTriggerType, TriggerRegistrationResult, UnregisterFunction, UnregisterTrigger, UnregisterTriggerType,
};
use engine_router::{ConnId, Expose, Input, Installed, Opened, Pattern, Policy, Router, Session};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bytes::Bytes;
use crate::expected::Expected;
use crate::features::Features;

const STEPS: usize = 1000;
const WORKERS: usize = 6;
const BUILTINS: [&str; 2] = ["iii-state", "iii-queue"];

/// What is registered and called; some belong to built-in workers, some to the engine, some to nobody.
const FUNCTIONS: [&str; 10] =
    ["a::a", "a::b", "p::a::b", "gate", "state::get", "iii-queue::enqueue", "worker::add", "hook", "engine::x", ""];
const OWN: [&str; 6] = [
    "engine::channels::create",
    "engine::functions::list",
    "engine::workers::list",
    "engine::workers::register",
    "engine::registered-triggers::info",
    "engine::triggers::list",
];
const TYPES: [&str; 6] =
    ["mail", "state", "engine::workers-available", "engine::functions-available", "cron", "engine::x"];

/// Whatever the story, every call that is accepted is answered once, nothing goes to who is not there, and when all have
/// left the router is as it was in the beginning.
pub fn router(input: &[u8], features: &mut Features) {
    let mut play = Play {
        bytes: Bytes(input),
        expected: Expected::new(),
        workers: Vec::new(),
        builtins: [None, None],
        lost: Vec::new(),
        asked: Vec::new(),
        next: 0,
    };
    let mut before = Vec::new();
    for _ in 0..STEPS {
        if play.bytes.is_empty() {
            break;
        }
        let scene = play.bytes.below(24);
        let words = play.scene(scene);
        features.note((scene, &words));
        features.note((&before, &words));
        before = words;
    }
    play.end();
}

/// A worker as it sees itself.
#[derive(Clone)]
struct Worker {
    conn: ConnId,
    id: Uuid,
    token: String,
}

struct Play<'a> {
    bytes: Bytes<'a>,
    expected: Expected,
    workers: Vec<Worker>,
    builtins: [Option<ConnId>; BUILTINS.len()],
    /// Those that come back, perhaps before they are missed.
    lost: Vec<Worker>,
    /// Calls of the engine's own.
    asked: Vec<Uuid>,
    next: u64,
}

impl Play<'_> {
    fn scene(&mut self, scene: usize) -> Vec<&'static str> {
        match scene {
            0 | 1 => self.come(),
            2 => self.go(),
            3 => self.come_back(),
            4 => self.install(),
            5 => self.uninstall(),
            6 | 7 => {
                let message = self.function();
                self.say(Message::from(message))
            }
            8 => {
                let id = self.one_of(&FUNCTIONS);
                self.say(Message::UnregisterFunction(UnregisterFunction { id }))
            }
            9 => {
                let kind = self.trigger_type();
                self.say(Message::RegisterTriggerType(kind))
            }
            10 => {
                let id = self.one_of(&TYPES);
                self.say(Message::UnregisterTriggerType(UnregisterTriggerType { id }))
            }
            11 | 12 => self.bind(),
            13 => {
                let id = self.trigger_id();
                self.say(Message::UnregisterTrigger(UnregisterTrigger { id, trigger_type: None }))
            }
            14 => self.refuse_binding(),
            15 | 16 => {
                let call = self.call(&FUNCTIONS);
                self.say(Message::from(call))
            }
            17 => {
                let call = self.call(&OWN);
                self.say(Message::from(call))
            }
            18 => self.answer(),
            19 => self.lie(),
            20 => self.ask(),
            21 => self.forget(),
            22 => self.make_channel(),
            _ => self.say_anything(),
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn one_of(&mut self, ids: &[&str]) -> String {
        ids[self.bytes.below(ids.len())].to_owned()
    }

    fn step(&mut self, input: Input) -> Vec<&'static str> {
        self.expected.step(input)
    }

    /// Somebody who is there; a stranger when nobody is.
    fn somebody(&mut self) -> ConnId {
        let at = self.bytes.below(self.workers.len() + 1);
        self.workers.get(at).map_or(ConnId(u64::MAX), |worker| worker.conn)
    }

    fn say(&mut self, message: Message) -> Vec<&'static str> {
        let conn = self.somebody();
        self.step(Input::Received { conn, message })
    }

    fn come(&mut self) -> Vec<&'static str> {
        if self.workers.len() == WORKERS {
            return self.step(Input::Tick);
        }
        let n = self.fresh();
        let (kind, token) = (self.bytes.below(6), format!("token-{n}"));
        let worker = Worker { conn: ConnId(n), id: Uuid::from_u128(u128::from(n)), token };
        self.workers.push(worker.clone());
        self.step(opened(&worker, kind))
    }

    fn go(&mut self) -> Vec<&'static str> {
        if self.workers.is_empty() {
            return self.step(Input::Closed { conn: ConnId(u64::MAX) });
        }
        let at = self.bytes.below(self.workers.len());
        let worker = self.workers.remove(at);
        self.step(Input::Closed { conn: worker.conn })
    }

    /// On a new connection, while the old one seems to be there; with its token or a guess.
    fn come_back(&mut self) -> Vec<&'static str> {
        let at = self.bytes.below(self.workers.len().max(1));
        let Some(old) = self.workers.get(at).cloned() else { return self.come() };
        let mut words = self.come();
        let reattach_token = Some(if self.bytes.flip() { old.token.clone() } else { "a guess".to_owned() });
        let conn = self.workers.last().map_or(old.conn, |worker| worker.conn);
        let message = Message::Reattach(Reattach { previous_worker_id: old.id, reattach_token });
        words.extend(self.step(Input::Received { conn, message }));
        if words.contains(&"closed") {
            self.workers.retain(|worker| worker.conn != old.conn);
            self.lost.push(old);
        }
        words
    }

    fn install(&mut self) -> Vec<&'static str> {
        let at = self.bytes.below(BUILTINS.len());
        if self.builtins[at].is_some() {
            return self.step(Input::Tick);
        }
        let conn = ConnId(self.fresh());
        self.builtins[at] = Some(conn);
        let (ids, kinds): (&[&str], &[&str]) =
            if at == 0 { (&["state::get"], &["state"]) } else { (&["iii-queue::enqueue", "a::b"], &["mail"]) };
        self.step(Input::Installed(Box::new(Installed {
            conn,
            worker: Uuid::from_u128(u128::from(conn.0)),
            name: BUILTINS[at],
            functions: ids.iter().map(|id| function(id)).collect(),
            trigger_types: kinds.iter().map(|id| trigger_type(id)).collect(),
        })))
    }

    fn uninstall(&mut self) -> Vec<&'static str> {
        let at = self.bytes.below(BUILTINS.len());
        let conn = self.builtins[at].take().unwrap_or(ConnId(u64::MAX));
        self.step(Input::Closed { conn })
    }

    fn function(&mut self) -> RegisterFunction {
        let id = self.one_of(&FUNCTIONS);
        let invocation = (self.bytes.below(4) == 3).then(|| json(&json!({ "url": "http://x" })));
        let description = (self.bytes.below(64) == 63).then(|| "long".repeat(300_000));
        RegisterFunction { invocation, description, ..function(&id) }
    }

    fn trigger_type(&mut self) -> RegisterTriggerType {
        trigger_type(&self.one_of(&TYPES))
    }

    fn trigger_id(&mut self) -> String {
        format!("t{}", self.bytes.below(4))
    }

    fn bind(&mut self) -> Vec<&'static str> {
        let (id, kind) = (self.trigger_id(), self.one_of(&TYPES));
        let function_id = self.one_of(&FUNCTIONS);
        let config = self.bytes.flip().then(|| json(&json!({ "condition_function_id": "worker::add" })));
        self.say(Message::from(RegisterTrigger { id, trigger_type: kind, function_id, config, metadata: None }))
    }

    /// By a provider, built-in or not, or by somebody who is none.
    fn refuse_binding(&mut self) -> Vec<&'static str> {
        let id = self.trigger_id();
        let result = TriggerRegistrationResult {
            id,
            trigger_type: None,
            function_id: None,
            error: self.bytes.flip().then(|| ErrorBody::new("trigger_registration_failed", "no")),
        };
        let at = self.bytes.below(BUILTINS.len() + 1);
        let builtin = self.builtins.get(at).copied().flatten();
        let conn = builtin.unwrap_or_else(|| self.somebody());
        self.step(Input::Received { conn, message: Message::from(result) })
    }

    /// Ids of calls are the callers' choice: few, so that they meet.
    fn call(&mut self, ids: &[&str]) -> InvokeFunction {
        let function_id = self.one_of(ids);
        let id = self.bytes.below(8);
        let action = match self.bytes.below(6) {
            0 => Some(Action::Void),
            1 => Some(Action::Enqueue { queue: "q".to_owned() }),
            _ => None,
        };
        let data = match self.bytes.below(4) {
            0 => None,
            1 => Some(json(&json!({ "name": "w", "pid": 7, "_caller_worker_id": "me" }))),
            2 => Some(json(&json!(["deep", { "id": "t0" }]))),
            _ => Some(json(&json!({ "id": "t0", "include_internal": true, "name": "w" }))),
        };
        InvokeFunction {
            invocation_id: (id > 0).then(|| Uuid::from_u128(1_000_000 + id as u128)),
            function_id,
            data: data.map(Payload::from),
            traceparent: None,
            baggage: None,
            action,
            metadata: None,
        }
    }

    /// By the one that the call is with.
    fn answer(&mut self) -> Vec<&'static str> {
        let calls = self.expected.under_way();
        let Some((id, executor)) = calls.get(self.bytes.below(calls.len().clamp(1, 256))).copied() else {
            return self.step(Input::Tick);
        };
        let fails = self.bytes.flip();
        self.step(answer(executor, id, fails))
    }

    /// By anybody, to anything.
    fn lie(&mut self) -> Vec<&'static str> {
        let calls = self.expected.under_way();
        let id = match calls.get(self.bytes.below(256)) {
            Some((id, _)) => *id,
            None => Uuid::from_u128(1_000_000 + self.bytes.below(8) as u128),
        };
        let conn = self.somebody();
        self.step(answer(conn, id, false))
    }

    fn ask(&mut self) -> Vec<&'static str> {
        let (own, wants_answer) = (self.bytes.below(8) == 7, self.bytes.below(4) > 0);
        let call = self.call(if own { &OWN } else { &FUNCTIONS });
        let answer = wants_answer.then(|| Uuid::from_u128(2_000_000 + u128::from(self.fresh())));
        self.asked.extend(answer);
        let call = Box::new(InvokeFunction { invocation_id: None, action: None, ..call });
        self.step(Input::Call { call, answer })
    }

    fn forget(&mut self) -> Vec<&'static str> {
        let at = self.bytes.below(256);
        let answer = self.asked.get(at).copied().unwrap_or(Uuid::nil());
        self.step(Input::Forget { answer })
    }

    fn make_channel(&mut self) -> Vec<&'static str> {
        let Some(channel) = self.expected.next_channel() else { return self.step(Input::Tick) };
        let refs =
            if self.bytes.flip() { Ok(json(&json!({}))) } else { Err(ErrorBody::new("limit_reached", "too many")) };
        self.step(Input::ChannelCreated { conn: channel.conn, invocation: channel.invocation, refs })
    }

    fn say_anything(&mut self) -> Vec<&'static str> {
        let message = std::str::from_utf8(self.bytes.some()).ok().and_then(|text| engine_protocol::decode(text).ok());
        match message {
            Some(message) => self.say(message),
            None => self.step(Input::Tick),
        }
    }

    /// What is under way is answered, and everybody leaves.
    fn end(mut self) {
        for (id, executor) in self.expected.under_way() {
            self.step(answer(executor, id, false));
        }
        while let Some(channel) = self.expected.next_channel() {
            let refs = Ok(json(&json!({})));
            self.step(Input::ChannelCreated { conn: channel.conn, invocation: channel.invocation, refs });
        }
        let left: Vec<ConnId> = self.workers.iter().chain(&self.lost).map(|worker| worker.conn).collect();
        for conn in left.into_iter().chain(self.builtins.into_iter().flatten()) {
            self.step(Input::Closed { conn });
        }
        // A handler of departures may be called by the very last of them.
        assert_eq!(self.expected.under_way(), [], "calls are with nobody");
        assert_eq!(remembered(&mut self.expected.router), remembered(&mut Router::new("0", 7)));
    }
}

/// All that a router tells a newcomer.
fn remembered(router: &mut Router) -> Vec<String> {
    let newcomer = Worker { conn: ConnId(u64::MAX - 1), id: Uuid::max(), token: String::new() };
    let mut told = vec![format!("{:?}", router.step(0, Input::Tick))];
    router.step(0, opened(&newcomer, 0));
    for function_id in [
        "engine::functions::list",
        "engine::triggers::list",
        "engine::registered-triggers::list",
        "engine::workers::list",
    ] {
        let call = InvokeFunction {
            invocation_id: Some(Uuid::nil()),
            function_id: function_id.to_owned(),
            data: Some(json(&json!({ "include_internal": true })).into()),
            traceparent: None,
            baggage: None,
            action: None,
            metadata: None,
        };
        let message = Message::from(call);
        told.push(format!("{:?}", router.step(0, Input::Received { conn: newcomer.conn, message })));
    }
    told
}

/// `kind`: with all rights, from a VM, behind rules, behind a middleware.
fn opened(worker: &Worker, kind: usize) -> Input {
    let policy = Policy {
        allowed_functions: HashSet::from(["gate".to_owned(), "engine::functions::list".to_owned()]),
        forbidden_functions: HashSet::from(["a::b".to_owned()]),
        expose: Pattern::parse("match('a::*')").map(Expose::Id).into_iter().collect(),
        allowed_trigger_types: Some(HashSet::from(["mail".to_owned(), "state".to_owned()])),
        may_register_functions: true,
        may_register_trigger_types: kind == 4,
        prefix: Some("p".to_owned()),
        context: Value::Null,
    };
    let session = Session {
        policy: (kind == 3 || kind == 4).then(|| Arc::new(policy)),
        middleware: (kind >= 4).then(|| "gate".to_owned()),
    };
    Input::Opened(Box::new(Opened {
        conn: worker.conn,
        worker: worker.id,
        reattach_token: worker.token.clone(),
        vm_worker: (kind == 2).then(|| "in-a-vm".to_owned()),
        isolation: None,
        address: None,
        session,
    }))
}

fn function(id: &str) -> RegisterFunction {
    RegisterFunction {
        id: id.to_owned(),
        description: None,
        request_format: None,
        response_format: None,
        metadata: None,
        invocation: None,
    }
}

fn trigger_type(id: &str) -> RegisterTriggerType {
    RegisterTriggerType {
        id: id.to_owned(),
        description: None,
        trigger_request_format: None,
        call_request_format: None,
    }
}

fn answer(conn: ConnId, invocation_id: Uuid, fails: bool) -> Input {
    let (result, error) =
        if fails { (None, Some(ErrorBody::new("failed", "on purpose"))) } else { (Some(json(&json!("done"))), None) };
    let result = InvocationResult {
        invocation_id,
        function_id: String::new(),
        result: result.map(Payload::from),
        error,
        traceparent: None,
        baggage: None,
    };
    Input::Received { conn, message: Message::from(result) }
}

fn json(value: &Value) -> Box<RawValue> {
    engine_protocol::raw(value).expect("values can be written")
}
