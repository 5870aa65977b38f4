//! What each function answers, and whom it tells.

use std::sync::Arc;

use engine_builtin::{Builtin, ErrorBody, PER_LANE};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::fake::{FakeEngine, bind, next, unbind};
use crate::{in_memory, item, item_with, worker};

#[tokio::test]
async fn items_are_set_read_listed_changed_and_deleted() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let set = worker.call("set", item_with("room", "b", "data", json!({ "n": 1 }))).await;
    assert_eq!(set, Some(json!({ "old_value": null, "new_value": { "n": 1 } })));
    worker.set("room", "a", json!(null)).await;
    worker.set("hall", "c", json!("x")).await;
    assert_eq!(worker.call("get", item("room", "b")).await, Some(json!({ "n": 1 })));
    assert_eq!(worker.call("get", item("room", "a")).await, Some(Value::Null));
    assert_eq!(worker.call("get", item("room", "z")).await, None);
    let group = json!({ "stream_name": "chat", "group_id": "room" });
    assert_eq!(worker.call("list", group.clone()).await, Some(json!([{ "n": 1 }, null])), "as they were made");
    let increment = json!([{ "type": "increment", "path": "n", "by": 2 }]);
    let updated = worker.call("update", item_with("room", "b", "ops", increment)).await;
    assert_eq!(updated, Some(json!({ "old_value": { "n": 1 }, "new_value": { "n": 3 } })));
    let wrong = json!([{ "type": "increment", "path": "", "by": 1 }]);
    let updated = worker.call("update", item_with("room", "b", "ops", wrong)).await.expect("a result");
    assert_eq!(updated["errors"][0]["op_index"], 0);
    assert_eq!(worker.call("list_groups", json!({ "stream_name": "chat" })).await, Some(json!(["hall", "room"])));
    assert_eq!(
        worker.call("list_all", json!({})).await,
        Some(json!({ "stream": [{ "id": "chat", "groups": ["hall", "room"] }], "count": 1 }))
    );
    assert_eq!(worker.call("delete", item("hall", "c")).await, Some(json!({ "old_value": "x" })));
    assert_eq!(worker.call("delete", item("hall", "c")).await, Some(json!({ "old_value": null })));
    assert_eq!(worker.call("list_groups", json!({ "stream_name": "chat" })).await, Some(json!(["room"])));
    let nothing = json!({ "stream_name": "other", "group_id": "none" });
    assert_eq!(worker.call("list", nothing).await, Some(json!([])));
    assert_eq!(
        worker.call("send", json!({ "stream_name": "s", "group_id": "g", "type": "t" })).await,
        Some(json!(null))
    );
    for op in ["set", "get", "delete", "list", "list_groups", "send", "update"] {
        assert_eq!(worker.fail(op, json!({ "stream_name": 1 })).await, "deserialization_error", "{op}");
    }
}

#[tokio::test]
async fn handlers_get_the_event_with_their_writers_order_and_only_what_they_asked_for() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut all, mut one) = (fake.note("all"), fake.note("one"));
    fake.offer("no deletes", |event| async move { Ok(json!(event["event"]["type"] != "delete")) });
    bind(&worker.builtin, "stream", "all", json!({ "stream_name": "chat", "group_id": "", "item_id": "" }));
    let config = json!({
        "stream_name": "chat", "group_id": "room", "item_id": "b", "condition_function_id": "no deletes"
    });
    bind(&worker.builtin, "stream", "one", config);
    worker.set("room", "a", json!(1)).await;
    worker.set("room", "b", json!(2)).await;
    worker.set("room", "b", json!(3)).await;
    worker.call("delete", item("room", "b")).await;
    worker.call("delete", item("room", "b")).await;
    worker.call("send", json!({ "stream_name": "chat", "group_id": "room", "type": "typing", "data": 4 })).await;
    worker.set("room", "b", json!(5)).await;
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(next(&mut all).await.0);
    }
    let events: Vec<&Value> = heard.iter().map(|object| &object["event"]).collect();
    assert_eq!(
        json!(events),
        json!([
            { "type": "create", "data": 1 }, { "type": "create", "data": 2 }, { "type": "update", "data": 3 },
            { "type": "delete", "data": 3 }, { "type": "event", "event": { "type": "typing", "data": 4 } },
            { "type": "create", "data": 5 }
        ])
    );
    assert_eq!((&heard[4]["id"], &heard[1]["id"], &heard[1]["type"]), (&json!(null), &json!("b"), &json!("stream")));
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(next(&mut one).await.0["event"]["data"].take());
    }
    kinds.sort_by_key(Value::as_u64);
    assert_eq!(kinds, [json!(2), json!(3), json!(5)], "the delete was skipped by the condition");
    unbind(&worker.builtin, "stream", "all");
    worker.set("room", "b", json!(6)).await;
    next(&mut one).await;
    assert!(all.try_recv().is_err());
}

/// Two functions that note each event and answer when they are let.
fn gated(fake: &Arc<FakeEngine>) -> (mpsc::UnboundedReceiver<(&'static str, Value)>, Arc<Semaphore>) {
    let (told, heard) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    for function in ["first", "second"] {
        let (told, gate) = (told.clone(), Arc::clone(&gate));
        fake.offer(function, move |event| {
            let _ = told.send((function, event["event"]["data"].clone()));
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("open").forget();
                Ok(Value::Null)
            }
        });
    }
    (heard, gate)
}

#[tokio::test]
async fn events_of_an_item_take_turns_and_neither_writers_nor_other_items_nor_other_handlers_wait() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut heard, gate) = gated(&fake);
    bind(&worker.builtin, "stream", "first", json!({ "stream_name": "chat" }));
    bind(&worker.builtin, "stream", "second", json!({ "stream_name": "chat", "item_id": "a" }));
    for number in 1..=3 {
        worker.set("room", "a", json!(number)).await;
    }
    worker.set("room", "b", json!("b")).await;
    worker.set("hall", "a", json!("hall")).await;
    worker.call("send", json!({ "stream_name": "chat", "group_id": "room", "type": "t", "data": "all" })).await;
    let mut begun = Vec::new();
    for _ in 0..6 {
        begun.push(next(&mut heard).await);
    }
    begun.sort_by_key(|(function, data)| (*function, data.to_string()));
    let of_the_group = Value::Null;
    let of_first = [json!("b"), json!("hall"), json!(1), of_the_group].map(|data| ("first", data));
    let of_second = [json!("hall"), json!(1)].map(|data| ("second", data));
    assert_eq!(begun, [&of_first[..], &of_second].concat());
    assert!(heard.try_recv().is_err(), "the second event of an item before its first was answered");
    unbind(&worker.builtin, "stream", "second");
    gate.add_permits(6);
    assert_eq!(next(&mut heard).await, ("first", json!(2)), "nobody who has gone is called");
    assert!(heard.try_recv().is_err());
    gate.add_permits(1);
    assert_eq!(next(&mut heard).await, ("first", json!(3)));
}

#[tokio::test]
async fn a_binding_that_is_registered_anew_gets_what_waited_and_in_order() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut heard, gate) = gated(&fake);
    bind(&worker.builtin, "stream", "first", json!({ "stream_name": "chat" }));
    worker.set("room", "a", json!(1)).await;
    worker.set("room", "a", json!(2)).await;
    bind(&worker.builtin, "stream", "first", json!({ "stream_name": "chat" }));
    worker.set("room", "a", json!(3)).await;
    for number in 1..=3 {
        assert_eq!(next(&mut heard).await, ("first", json!(number)));
        assert!(heard.try_recv().is_err(), "the next one before this was answered");
        gate.add_permits(1);
    }
}

#[tokio::test]
async fn a_handler_that_never_answers_is_given_up_and_the_next_event_of_its_item_follows() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut heard, _gate) = gated(&fake);
    bind(&worker.builtin, "stream", "first", json!({ "stream_name": "chat" }));
    worker.set("room", "a", json!(1)).await;
    worker.set("room", "a", json!(2)).await;
    // From here on there is only waiting, and no thread but this one.
    tokio::time::pause();
    for number in 1..=2 {
        assert_eq!(heard.recv().await, Some(("first", json!(number))));
    }
}

#[tokio::test]
async fn what_waits_for_a_handler_is_bounded_and_writes_go_on() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut heard, gate) = gated(&fake);
    bind(&worker.builtin, "stream", "first", json!({ "stream_name": "chat" }));
    for number in 0..=PER_LANE.waiting + 100 {
        worker.set("room", "a", json!(number)).await;
    }
    gate.add_permits(Semaphore::MAX_PERMITS);
    for number in 0..=PER_LANE.waiting {
        assert_eq!(next(&mut heard).await.1, json!(number));
    }
    worker.set("room", "a", json!("after")).await;
    assert_eq!(next(&mut heard).await.1, json!("after"));
}

#[tokio::test]
async fn a_binding_without_a_stream_is_refused() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    for config in [json!({}), json!({ "stream_name": "" }), json!({ "stream_name": 1 })] {
        let binding = engine_builtin::Binding {
            id: "b".into(),
            trigger_type: "stream".into(),
            function_id: "f".into(),
            config,
            owner: None,
            vm: None,
        };
        assert_eq!(worker.stream.bind(binding).expect_err("refused").code, "trigger_registration_failed");
    }
}

#[tokio::test]
async fn a_stream_that_a_workers_functions_keep_is_asked_of_them_and_its_events_are_told() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    fake.offer("stream::set(chat)", |data| async move { Ok(json!({ "old_value": 1, "new_value": data["data"] })) });
    fake.offer("stream::get(chat)", |data| async move { Ok(json!({ "of": data["item_id"] })) });
    fake.offer("stream::list(chat)", |_| async { Ok(json!("no list")) });
    fake.offer("stream::delete(chat)", |_| async { Err(ErrorBody::new("MINE", "no")) });
    let mut heard = fake.note("handler");
    bind(&worker.builtin, "stream", "handler", json!({ "stream_name": "chat" }));
    let set = worker.call("set", item_with("room", "a", "data", json!(7))).await;
    assert_eq!(set, Some(json!({ "old_value": 1, "new_value": 7 })));
    assert_eq!(next(&mut heard).await.0["event"], json!({ "type": "update", "data": 7 }));
    assert_eq!(worker.call("get", item("room", "a")).await, Some(json!({ "of": "a" })));
    assert_eq!(worker.fail("list", json!({ "stream_name": "chat", "group_id": "room" })).await, "JSON_ERROR");
    assert_eq!(worker.fail("delete", item("room", "a")).await, "MINE");
    assert_eq!(worker.call("list_groups", json!({ "stream_name": "chat" })).await, Some(json!([])), "not kept here");
}

#[tokio::test]
async fn items_lists_and_names_have_a_largest_size() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let part = "x".repeat(5 * 1024 * 1024);
    let append = item_with("room", "a", "ops", json!([{ "type": "append", "value": part }]));
    for _ in 0..2 {
        worker.call("update", append.clone()).await;
    }
    assert_eq!(worker.fail("update", append).await, "STREAM_UPDATE_ERROR");
    let large = json!(part.repeat(3));
    assert_eq!(worker.fail("set", item_with("room", "b", "data", large)).await, "STREAM_SET_ERROR");
    for number in 0..6 {
        worker.set("room", &format!("i{number}"), json!(part.repeat(2))).await;
    }
    let room = json!({ "stream_name": "chat", "group_id": "room" });
    assert_eq!(worker.fail("list", room).await, "STREAM_GET_GROUP_ERROR", "seventy megabytes");
    let long = "n".repeat(1025);
    for op in ["set", "get", "delete", "update", "list", "send"] {
        let request =
            json!({ "stream_name": "chat", "group_id": long, "item_id": "i", "data": 1, "ops": [], "type": "t" });
        assert_eq!(worker.fail(op, request).await, "deserialization_error", "{op}");
    }
    assert_eq!(worker.fail("list_groups", json!({ "stream_name": long })).await, "deserialization_error");
}
