//! Trigger types with several providers, and what a guest may do to them.

use std::collections::HashMap;

use engine_protocol::{
    ErrorBody, Message, RegisterTrigger, RegisterTriggerType, TriggerRegistrationResult, UnregisterTrigger,
    UnregisterTriggerType,
};
use engine_router::{ConnId, Effect, Input, Opened, Router, Session};
use uuid::Uuid;

/// A router with connections 1 to 3 of the host, 8 and 9 of one VM, 7 of another.
struct World {
    router: Router,
    /// What each connection has been told of bindings, and what was refused.
    told: HashMap<u64, Vec<String>>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { router: Router::new("0", 1), told: HashMap::new() };
        for conn in [1, 2, 3, 7, 8, 9] {
            let vm_worker = match conn {
                8 | 9 => Some("mine".to_owned()),
                7 => Some("another".to_owned()),
                _ => None,
            };
            world.step(Input::Opened(Box::new(Opened {
                conn: ConnId(conn),
                worker: Uuid::from_u128(u128::from(conn)),
                reattach_token: String::new(),
                vm_worker,
                isolation: None,
                address: None,
                session: Session::default(),
            })));
        }
        world
    }

    fn step(&mut self, input: Input) {
        for effect in self.router.step(0, input) {
            let (conn, line) = match effect {
                Effect::Send { conn, message: Message::RegisterTrigger(trigger), .. } => {
                    (conn, format!("+{}", trigger.id))
                }
                Effect::Send { conn, message: Message::UnregisterTrigger(trigger), .. } => {
                    assert!(trigger.trigger_type.is_some());
                    (conn, format!("-{}", trigger.id))
                }
                Effect::Send { conn, message: Message::TriggerRegistrationResult(result), .. } => {
                    (conn, result.error.map(|error| error.code).unwrap_or_default())
                }
                Effect::Refused { conn, error } => (conn, error.code),
                _ => continue,
            };
            self.told.entry(conn.0).or_default().push(line);
        }
    }

    fn say(&mut self, conn: u64, message: Message) {
        self.step(Input::Received { conn: ConnId(conn), message });
    }

    fn provide(&mut self, conn: u64) {
        let kind = RegisterTriggerType {
            id: "mail::in".into(),
            description: None,
            trigger_request_format: None,
            call_request_format: None,
        };
        self.say(conn, Message::RegisterTriggerType(kind));
    }

    fn bind(&mut self, conn: u64, id: &str, function_id: &str) {
        let (id, trigger_type, function_id) = (id.to_owned(), "mail::in".to_owned(), function_id.to_owned());
        let trigger = RegisterTrigger { id, trigger_type, function_id, config: None, metadata: None };
        self.say(conn, Message::from(trigger));
    }

    /// What a connection was told since the last time.
    fn told(&mut self, conn: u64) -> Vec<String> {
        self.told.remove(&conn).unwrap_or_default()
    }
}

#[test]
fn the_latest_provider_serves_and_the_one_before_it_when_it_leaves() {
    let mut world = World::new();
    world.provide(1);
    world.bind(3, "t", "f");
    assert_eq!(world.told(1), ["+t"]);
    world.provide(2);
    assert_eq!((world.told(1), world.told(2)), (vec!["-t".into()], vec!["+t".into()]));
    world.bind(3, "u", "f");
    assert_eq!((world.told(1).len(), world.told(2)), (0, vec!["+u".into()]));
    world.step(Input::Closed { conn: ConnId(2) });
    assert_eq!(world.told(1), ["+t", "+u"]);
    // One that takes its offer back leaves it to the others, too.
    world.provide(3);
    assert_eq!(world.told(1), ["-t", "-u"]);
    world.say(3, Message::UnregisterTriggerType(UnregisterTriggerType { id: "mail::in".into() }));
    assert_eq!(world.told(1), ["+t", "+u"]);
    world.bind(3, "v", "f");
    assert_eq!(world.told(1), ["+v"]);
}

#[test]
fn a_provider_that_says_so_again_gets_its_bindings_again() {
    let mut world = World::new();
    world.provide(1);
    world.bind(3, "t", "f");
    world.provide(1);
    assert_eq!(world.told(1), ["+t", "+t"]);
}

#[test]
fn a_guest_does_not_take_over_others_trigger_types() {
    let mut world = World::new();
    world.provide(1);
    world.bind(3, "t", "f");
    world.provide(9);
    assert_eq!((world.told(1), world.told(9)), (vec!["+t".into()], vec!["FORBIDDEN".into()]));
    let error = Some(ErrorBody::new("no", "no"));
    let refusal = TriggerRegistrationResult { id: "t".into(), trigger_type: None, function_id: None, error };
    world.say(9, Message::from(refusal));
    world.step(Input::Closed { conn: ConnId(9) });
    world.bind(3, "u", "f");
    assert_eq!((world.told(1), world.told(3)), (vec!["+u".into()], Vec::<String>::new()));
}

#[test]
fn a_guest_takes_over_its_own_trigger_types_and_triggers() {
    let mut world = World::new();
    world.provide(8);
    world.bind(8, "t", "f");
    world.provide(9);
    world.bind(9, "t", "f");
    assert_eq!((world.told(8), world.told(9)), (vec!["+t".into(), "-t".into()], vec!["+t".into(), "+t".into()]));
    world.step(Input::Closed { conn: ConnId(8) });
    assert_eq!(world.told(9).len(), 0, "what has moved does not go with the older connection");
    world.provide(7);
    world.bind(7, "t", "f");
    assert_eq!(world.told(7), ["FORBIDDEN", "FORBIDDEN"]);
}

#[test]
fn a_guest_has_nobody_call_what_it_may_not_call() {
    let mut world = World::new();
    world.provide(1);
    for function in ["worker::add", "worker::stop", "engine::workers::register"] {
        world.bind(9, "t", function);
        assert_eq!((world.told(9), world.told(1).len()), (vec!["FORBIDDEN".to_owned()], 0), "{function}");
    }
    world.bind(9, "t", "worker::list");
    world.bind(2, "u", "worker::add");
    assert_eq!(world.told(1), ["+t", "+u"]);
    world.say(9, Message::UnregisterTrigger(UnregisterTrigger { id: "u".into(), trigger_type: None }));
    assert_eq!(world.told(1).len(), 0);
}
