//! Who may register how much, and whether the books are right.

use engine_protocol::{Message, UnregisterFunction, UnregisterTrigger, UnregisterTriggerType};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::router::{Input, Opened};
use crate::session::Session;

const HOSTS: ConnId = ConnId(1);
const GUESTS: ConnId = ConnId(9);

fn open(router: &mut Router, conn: ConnId) {
    let opened = Opened {
        conn,
        worker: Uuid::from_u128(u128::from(conn.0)),
        reattach_token: String::new(),
        vm_worker: (conn == GUESTS).then(|| "mine".to_owned()),
        isolation: None,
        address: None,
        session: Session::default(),
    };
    router.step(0, Input::Opened(Box::new(opened)));
}

fn payload(bytes: usize) -> Option<Box<RawValue>> {
    engine_protocol::raw(&"x".repeat(bytes)).ok()
}

fn function(id: String, bytes: usize) -> Message {
    Message::from(RegisterFunction {
        id,
        description: None,
        request_format: payload(bytes),
        response_format: None,
        metadata: None,
        invocation: None,
    })
}

fn trigger_type(id: String, bytes: usize) -> Message {
    Message::RegisterTriggerType(RegisterTriggerType {
        id,
        description: None,
        trigger_request_format: payload(bytes),
        call_request_format: None,
    })
}

fn trigger(id: String, kind: String, bytes: usize) -> Message {
    let function_id = "f".to_owned();
    Message::from(RegisterTrigger { id, trigger_type: kind, function_id, config: payload(bytes), metadata: None })
}

/// The codes of all refusals of `messages` that one connection sends, logged or answered.
fn refusals(conn: ConnId, messages: impl IntoIterator<Item = Message>) -> Vec<String> {
    let mut router = Router::new("0", 1);
    open(&mut router, conn);
    let mut codes = Vec::new();
    for message in messages {
        for effect in router.step(0, Input::Received { conn, message }) {
            match effect {
                Effect::Refused { error, .. } => codes.push(error.code),
                Effect::Send { message: Message::TriggerRegistrationResult(result), .. } => {
                    codes.extend(result.error.map(|error| error.code));
                }
                _ => {}
            }
        }
    }
    codes
}

#[test]
fn a_guest_registers_so_much_and_a_host_more() {
    let functions = || (0..=GUEST.functions).map(|number| function(format!("f::{number}"), 1));
    assert_eq!(refusals(GUESTS, functions()), ["limit_reached"]);
    assert!(refusals(HOSTS, functions()).is_empty());
    let kinds = || (0..=GUEST.trigger_types).map(|number| trigger_type(format!("t::{number}"), 1));
    assert_eq!(refusals(GUESTS, kinds()), ["limit_reached"]);
    assert!(refusals(HOSTS, kinds()).is_empty());
    // Of a type that they provide themselves, so that nothing but their number is refused.
    let own = || std::iter::once(trigger_type("own".into(), 1));
    let triggers = || own().chain((0..=GUEST.triggers).map(|number| trigger(number.to_string(), "own".into(), 1)));
    assert_eq!(refusals(GUESTS, triggers()), ["trigger_registration_failed"]);
    assert!(refusals(HOSTS, triggers()).is_empty());
    let large = || (0..17).map(|number| function(format!("f::{number}"), 1000 * 1000));
    assert_eq!(refusals(GUESTS, large()), ["limit_reached"]);
    assert!(refusals(HOSTS, large()).is_empty());
}

#[test]
fn one_registration_has_a_mebibyte() {
    let large = MAX_REGISTRATION_BYTES;
    let all = [function("f".into(), large), trigger_type("t".into(), large), trigger("b".into(), "t".into(), large)];
    assert_eq!(refusals(HOSTS, all), ["limit_reached", "limit_reached", "trigger_registration_failed"]);
}

#[test]
fn registering_again_takes_no_further_room() {
    assert!(refusals(GUESTS, (0..2 * GUEST.functions).map(|_| function("f".into(), 1000))).is_empty());
}

fn message() -> impl Strategy<Value = Message> {
    let (id, bytes) = (|| (0..3u8).prop_map(|id| id.to_string()), 0..100_usize);
    prop_oneof![
        (id(), bytes.clone()).prop_map(|(id, bytes)| function(id, bytes)),
        (id(), bytes.clone()).prop_map(|(id, bytes)| trigger_type(id, bytes)),
        (id(), id(), bytes).prop_map(|(id, kind, bytes)| trigger(id, kind, bytes)),
        id().prop_map(|id| Message::UnregisterFunction(UnregisterFunction { id })),
        id().prop_map(|id| Message::UnregisterTriggerType(UnregisterTriggerType { id })),
        id().prop_map(|id| Message::UnregisterTrigger(UnregisterTrigger { id, trigger_type: None })),
        id().prop_map(|id| Message::from(engine_protocol::TriggerRegistrationResult {
            id,
            trigger_type: None,
            function_id: None,
            error: Some(ErrorBody::new("no", "no")),
        })),
    ]
}

/// What the tables hold of one connection.
fn counted(router: &Router, conn: ConnId) -> Held {
    let mut held = Held::default();
    for provider in router.functions.values().flatten().filter(|provider| provider.conn == conn) {
        held.add(Thing::Function, provider.function.bytes());
    }
    for known in router.trigger_types.values().flatten().filter(|known| known.owner == conn) {
        held.add(Thing::TriggerType, known.kind.bytes());
    }
    for stored in router.triggers.values().filter(|stored| stored.owner == conn) {
        held.add(Thing::Trigger, stored.trigger.bytes());
    }
    held
}

proptest! {
    /// What is counted for a connection is what the tables hold of it.
    #[test]
    fn the_books_are_right(acts in prop::collection::vec((0..3u64, prop::option::weighted(0.9, message())), 1..150)) {
        let conns = [HOSTS, ConnId(2), GUESTS];
        let mut router = Router::new("0", 1);
        for conn in conns {
            open(&mut router, conn);
        }
        for (at, message) in acts {
            let conn = conns[at as usize];
            match message {
                Some(message) => drop(router.step(0, Input::Received { conn, message })),
                None => {
                    router.step(0, Input::Closed { conn });
                    open(&mut router, conn);
                }
            }
            for conn in conns {
                prop_assert_eq!(&router.connections[&conn].held, &counted(&router, conn));
            }
        }
    }
}
