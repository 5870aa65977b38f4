//! What the trigger type `state` does.

use std::collections::HashMap;
use std::sync::Arc;

use engine_builtin::{BoxFuture, Builtin, ErrorBody, Invocation};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::fake_engine::{Called, PATIENCE, bind, binding, done, engine, in_memory, quiet_engine, raw, state, trace};

async fn set(state: &Arc<dyn Builtin>, scope: &str, key: &str, value: Value) {
    done(state, "set", json!({"scope": scope, "key": key, "value": value})).await;
}

async fn quiet() -> (Arc<dyn Builtin>, Called) {
    let (engine, called) = quiet_engine();
    (state(engine, in_memory()).await, called)
}

/// A last event, which shows that nothing came before it.
async fn nothing_else(state: &Arc<dyn Builtin>, called: &mut Called) {
    bind(state, "last", "last", json!({"scope": "last"}));
    set(state, "last", "last", json!(1)).await;
    assert_eq!(called.next().await.0, "last");
    state.unbind("state", "last");
}

#[tokio::test]
async fn events_tell_what_was_there_and_what_is_there_now() {
    let (state, mut called) = quiet().await;
    bind(&state, "t", "on_change", json!({"scope": "carts"}));
    let event = |event_type: &str, old_value: Value, new_value: Value| {
        let event = json!({"type": "state", "event_type": event_type, "scope": "carts", "key": "c-9",
            "old_value": old_value, "new_value": new_value});
        ("on_change".to_owned(), event)
    };
    let place = json!({"scope": "carts", "key": "c-9"});
    set(&state, "carts", "c-9", json!({"n": 1})).await;
    assert_eq!(called.next().await, event("state:created", Value::Null, json!({"n": 1})));
    set(&state, "carts", "c-9", json!({"n": 2})).await;
    assert_eq!(called.next().await, event("state:updated", json!({"n": 1}), json!({"n": 2})));
    let ops = json!([{"type": "increment", "path": "n", "by": 1}]);
    done(&state, "update", json!({"scope": "carts", "key": "c-9", "ops": ops})).await;
    assert_eq!(called.next().await, event("state:updated", json!({"n": 2}), json!({"n": 3})));
    done(&state, "delete", place.clone()).await;
    assert_eq!(called.next().await, event("state:deleted", json!({"n": 3}), Value::Null));
    done(&state, "delete", place).await;
    assert_eq!(called.next().await, event("state:deleted", Value::Null, Value::Null));
    let ops = json!([{"type": "set", "path": "", "value": 1}]);
    done(&state, "update", json!({"scope": "carts", "key": "c-9", "ops": ops})).await;
    assert_eq!(called.next().await, event("state:created", Value::Null, json!(1)));
    nothing_else(&state, &mut called).await;
}

#[tokio::test]
async fn values_in_events_stay_the_text_they_were_and_carry_the_writers_trace() {
    let (state, mut called) = quiet().await;
    bind(&state, "t", "on_change", json!({}));
    let text = r#"{"scope":"s","key":"k","value":{"z":1,  "a":1e400}}"#;
    crate::fake_engine::ask(&state, "set", text).await.expect("stored");
    let call = called.next_call().await;
    assert!(call.data.get().contains(r#""new_value":{"z":1,  "a":1e400}"#), "{}", call.data);
    assert_eq!(call.trace, trace());
}

#[tokio::test]
async fn a_trigger_fires_for_its_scope_and_key_only() {
    let (state, mut called) = quiet().await;
    bind(&state, "1", "scope", json!({"scope": "s"}));
    bind(&state, "2", "key", json!({"key": "k", "scope": null}));
    bind(&state, "3", "both", json!({"scope": "s", "key": "k", "unknown": 1}));
    for (scope, key, expected) in
        [("s", "k", &["scope", "key", "both"][..]), ("s", "x", &["scope"]), ("x", "k", &["key"])]
    {
        set(&state, scope, key, json!(1)).await;
        for function in expected {
            assert_eq!(called.next().await.0, *function, "{scope} {key}");
        }
    }
    set(&state, "x", "x", json!(1)).await;
    nothing_else(&state, &mut called).await;
}

#[tokio::test]
async fn a_binding_can_be_replaced_and_removed_and_must_fit() {
    let (state, mut called) = quiet().await;
    bind(&state, "t", "first", json!({"scope": "s"}));
    bind(&state, "t", "second", json!({"scope": "s"}));
    set(&state, "s", "k", json!(1)).await;
    assert_eq!(called.next().await.0, "second");
    state.unbind("state", "t");
    state.unbind("state", "never there");
    set(&state, "s", "k", json!(1)).await;
    nothing_else(&state, &mut called).await;
    for config in [json!({"scope": 1}), json!("s"), json!([1])] {
        let error = state.bind(binding("t", "f", config)).expect_err("no binding");
        assert_eq!(error.code, "trigger_registration_failed");
    }
}

#[tokio::test]
async fn only_a_literal_false_and_an_error_keep_a_handler_from_being_called() {
    let (engine, mut called) = engine(|call: Invocation| {
        Box::pin(async move {
            match call.function_id.as_str() {
                "fails" => Err(ErrorBody::new("broken", "on purpose")),
                "nothing" => Ok(None),
                condition => Ok(Some(raw(condition))),
            }
        })
    });
    let state = state(engine, in_memory()).await;
    let conditions =
        [("false", false), ("fails", false), ("nothing", true), ("null", true), ("0", true), ("true", true)];
    for (condition, _) in conditions {
        bind(&state, condition, &format!("\"{condition}\""), json!({"condition_function_id": condition}));
    }
    set(&state, "s", "k", json!(1)).await;
    let payload = json!({"type": "state", "event_type": "state:created", "scope": "s", "key": "k", "old_value": null,
        "new_value": 1});
    for (condition, met) in conditions {
        assert_eq!(called.next().await, (condition.to_owned(), payload.clone()));
        if met {
            assert_eq!(called.next().await, (format!("\"{condition}\""), payload.clone()));
        }
    }
    for (condition, _) in conditions {
        state.unbind("state", condition);
    }
    nothing_else(&state, &mut called).await;
}

#[tokio::test]
async fn triggers_are_switched_off_and_on_at_once() {
    let (engine, mut called) = quiet_engine();
    let mut settings = in_memory();
    settings["triggers_enabled"] = json!(false);
    let state = state(engine, settings).await;
    bind(&state, "t", "on_change", Value::Null);
    set(&state, "s", "off", json!(1)).await;
    state.apply(in_memory()).await.expect("applied");
    set(&state, "s", "on", json!(1)).await;
    assert_eq!(called.next().await.1["key"], "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_key_come_in_the_order_of_the_writes() {
    let (state, mut called) = quiet().await;
    bind(&state, "t", "on_change", Value::Null);
    let count = |number: usize| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let ops = json!([{"type": "increment", "path": "", "by": 1}]);
            let start = json!([{"type": "set", "path": "", "value": 0}]);
            let key = format!("k{}", number % 5);
            done(&state, "update", json!({"scope": "s", "key": key, "ops": if number < 5 { start } else { ops }})).await
        })
    };
    for first in (0..5).map(count).collect::<Vec<_>>() {
        first.await.expect("no panic");
    }
    for counted in (5..500).map(count).collect::<Vec<_>>() {
        counted.await.expect("no panic");
    }
    let mut seen: HashMap<String, i64> = HashMap::new();
    for _ in 0..500 {
        let (_, event) = called.next().await;
        let key = event["key"].as_str().expect("a key").to_owned();
        let expected = seen.get(&key).map_or(0, |last| last + 1);
        assert_eq!(event["new_value"], expected, "{key}");
        seen.insert(key, expected);
    }
}

/// An engine whose handlers wait for this.
fn gated(gate: &Arc<Semaphore>) -> impl Fn(Invocation) -> BoxFuture<'static, engine_builtin::Answer> + use<> {
    let gate = Arc::clone(gate);
    move |_| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            gate.acquire().await.expect("open").forget();
            Ok(None)
        })
    }
}

#[tokio::test]
async fn events_of_a_key_take_turns_and_neither_writers_nor_other_keys_nor_other_handlers_wait() {
    let gate = Arc::new(Semaphore::new(0));
    let (engine, mut called) = engine(gated(&gate));
    let state = state(engine, in_memory()).await;
    bind(&state, "1", "first", Value::Null);
    bind(&state, "2", "second", json!({"key": "k"}));
    set(&state, "s", "k", json!(1)).await;
    set(&state, "s", "k", json!(2)).await;
    let mut both =
        [called.next().await, called.next().await].map(|(function, event)| (function, event["new_value"].clone()));
    both.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(both, [("first".to_owned(), json!(1)), ("second".to_owned(), json!(1))]);
    set(&state, "s", "other", json!(3)).await;
    let (function, event) = called.next().await;
    assert_eq!((function.as_str(), &event["new_value"]), ("first", &json!(3)), "another key is not held up");
    assert_eq!(called.more(), 0);
    state.unbind("state", "2");
    gate.add_permits(3);
    let (function, event) = called.next().await;
    assert_eq!((function.as_str(), &event["new_value"]), ("first", &json!(2)), "nobody who has gone is called");
    assert_eq!(called.more(), 0);
    tokio::time::timeout(PATIENCE, state.stop()).await.expect("handlers that hang do not hold it up");
}

#[tokio::test]
async fn a_binding_that_is_registered_anew_gets_what_waited_and_in_order() {
    let gate = Arc::new(Semaphore::new(0));
    let (engine, mut called) = engine(gated(&gate));
    let state = state(engine, in_memory()).await;
    bind(&state, "t", "f", Value::Null);
    set(&state, "s", "k", json!(1)).await;
    set(&state, "s", "k", json!(2)).await;
    bind(&state, "t", "f", Value::Null);
    set(&state, "s", "k", json!(3)).await;
    for number in 1..=3 {
        assert_eq!(called.next().await.1["new_value"], number);
        assert_eq!(called.more(), 0, "the next one before this was answered");
        gate.add_permits(1);
    }
}

/// Values of a megabyte: more of them than may wait for one binding, and for all.
#[tokio::test]
async fn a_handler_that_hangs_costs_the_others_no_event() {
    let (engine, mut called) = engine(|call| {
        let hangs = call.function_id == "hangs";
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(None) } })
    });
    let state = state(engine, in_memory()).await;
    bind(&state, "1", "hangs", Value::Null);
    bind(&state, "2", "answers", Value::Null);
    let large = "x".repeat(1024 * 1024);
    for number in 0..100 {
        set(&state, "s", &format!("k{number}"), json!([number, large])).await;
        loop {
            let (function, event) = called.next().await;
            if function == "answers" {
                assert_eq!(event["new_value"][0], number);
                break;
            }
        }
    }
}

/// Twenty bindings to a function that hangs; an event for each comes before any for the function that answers.
#[tokio::test]
async fn a_vms_worker_with_many_handlers_that_hang_costs_the_others_no_event() {
    let (engine, mut called) = engine(|call| {
        let hangs = call.function_id == "hangs";
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(None) } })
    });
    let state = state(engine, in_memory()).await;
    for number in 0..20 {
        let id = format!("hangs {number}");
        let binding = engine_builtin::Binding { vm: Some("vm".into()), ..binding(&id, "hangs", Value::Null) };
        state.bind(binding).expect("bound");
    }
    bind(&state, "answers", "answers", Value::Null);
    let large = "x".repeat(1024 * 1024);
    let mut hanging = 0;
    for number in 0..200 {
        // At first small ones: many calls. Then large ones: more than may wait.
        let value = if number < 100 { json!([number]) } else { json!([number, large]) };
        set(&state, "s", &format!("k{number}"), value).await;
        loop {
            let (function, event) = called.next().await;
            if function == "answers" {
                assert_eq!(event["new_value"][0], number);
                break;
            }
            hanging += 1;
        }
    }
    assert_eq!(hanging, engine_builtin::PER_VM.in_flight);
}

#[tokio::test]
async fn a_handler_that_never_answers_is_given_up_and_the_next_event_follows() {
    let (engine, mut called) = engine(|_| Box::pin(std::future::pending()));
    let state = state(engine, in_memory()).await;
    bind(&state, "1", "hangs", Value::Null);
    set(&state, "s", "k", json!(1)).await;
    set(&state, "s", "k", json!(2)).await;
    // From here on there is only waiting, and no thread but this one.
    tokio::time::pause();
    for number in 1..=2 {
        let call = called.0.recv().await.expect("a call");
        let event: Value = serde_json::from_str(call.data.get()).expect("JSON");
        assert_eq!(event["new_value"], number);
    }
}

#[tokio::test]
async fn what_waits_for_a_handler_is_bounded_and_writes_go_on() {
    let gate = Arc::new(Semaphore::new(0));
    let (engine, mut called) = engine(gated(&gate));
    let state = state(engine, in_memory()).await;
    bind(&state, "t", "slow", json!({"scope": "s"}));
    set(&state, "s", "k", json!(0)).await;
    assert_eq!(called.next().await.1["new_value"], 0);
    for number in 1..=1500 {
        set(&state, "s", "k", json!(number)).await;
    }
    gate.add_permits(Semaphore::MAX_PERMITS);
    for number in 1..=1024 {
        assert_eq!(called.next().await.1["new_value"], number);
    }
    set(&state, "s", "k", json!("after")).await;
    assert_eq!(called.next().await.1["new_value"], "after");
}
