//! Ids that are used twice, and workers that take what is others'.

use scenarios::RawWorker;
use serde_json::{Value, json};

use crate::{beside, code, functions, until_functions, worker};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_with_one_function_the_newer_one_serves_until_it_leaves() {
    let (rig, bystander) = beside("").await;
    let (mut caller, mut older, mut newer) = (worker(&rig).await, worker(&rig).await, worker(&rig).await);
    for provider in [&mut older, &mut newer] {
        provider.register("same::id").await.expect("connected");
        provider.heard_until_now().await.expect("connected");
    }
    let id = caller.begin("same::id", &json!({})).await.expect("connected");
    let call = newer.hear_call().await.expect("the newer one is asked");
    newer.answer(&call, &json!("newer")).await.expect("connected");
    assert_eq!(caller.answer_to(&id).await.expect("connected"), Ok(json!("newer")));
    let under_way = caller.begin("same::id", &json!({})).await.expect("connected");
    newer.hear_call().await.expect("asked");
    drop(newer);
    let answer = caller.answer_to(&under_way).await.expect("connected");
    assert_eq!(code(&answer), Some("invocation_stopped"), "what it did not answer is answered for it: {answer:?}");
    let id = caller.begin("same::id", &json!({})).await.expect("connected");
    let call = older.hear_call().await.expect("the older one is asked");
    older.answer(&call, &json!("older")).await.expect("connected");
    assert_eq!(caller.answer_to(&id).await.expect("connected"), Ok(json!("older")));
    assert_eq!(functions(&mut caller, "same::").await, ["same::id"], "listed once");
    drop(older);
    until_functions(&mut caller, "same::", &[]).await;
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_under_one_id_are_each_answered_to_their_own_caller_with_their_own_answer() {
    let (rig, bystander) = beside("").await;
    let (mut one, mut other, mut echo) = (worker(&rig).await, worker(&rig).await, worker(&rig).await);
    echo.register("twice::echo").await.expect("connected");
    echo.heard_until_now().await.expect("connected");
    let id = "0192d6f0-0000-7000-8000-0000000000aa";
    for (is_one, says) in [(true, "first"), (false, "second"), (true, "third")] {
        let caller = if is_one { &mut one } else { &mut other };
        caller.begin_as(id, "twice::echo", &json!({ "says": says })).await.expect("connected");
        caller.heard_until_now().await.expect("connected");
    }
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(echo.hear_call().await.expect("a call"));
    }
    let mut ids: Vec<&str> = calls.iter().filter_map(|call| call["invocation_id"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has an id of its own on its way: {calls:?}");
    for call in calls.iter().rev() {
        echo.answer(call, &call["data"]["says"]).await.expect("connected");
    }
    assert_eq!(other.answer_to(id).await.expect("connected"), Ok(json!("second")));
    let mut answers = Vec::new();
    for _ in 0..2 {
        answers.push(one.answer_to(id).await.expect("connected"));
    }
    answers.sort_by_key(|answer| format!("{answer:?}"));
    assert_eq!(answers, [Ok(json!("first")), Ok(json!("third"))]);
    for caller in [&mut one, &mut other] {
        assert_eq!(caller.heard_until_now().await.expect("connected"), [Value::Null; 0], "and once only");
    }
    bystander.noticed_nothing(&rig).await;
}

fn trigger(id: &str, kind: &str, function: &str) -> Value {
    json!({ "type": "registertrigger", "id": id, "trigger_type": kind, "function_id": function, "config": {} })
}

async fn bindings(provider: &mut RawWorker) -> Vec<(String, String)> {
    let heard = provider.heard_until_now().await.expect("connected");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = heard.iter().filter(|message| message["type"] != "invokefunction");
    told.map(|message| (text(&message["type"]), text(&message["id"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_or_type_that_is_registered_twice_belongs_to_the_newer_one_and_fires_once() {
    let (rig, bystander) = beside("").await;
    let (mut one, mut other) = (worker(&rig).await, worker(&rig).await);
    let (mut older, mut newer) = (worker(&rig).await, worker(&rig).await);
    let kind = json!({ "type": "registertriggertype", "id": "same::kind", "description": "" });
    older.say(&kind).await.expect("connected");
    assert_eq!(bindings(&mut older).await, []);
    one.say(&trigger("same", "same::kind", "one::f")).await.expect("connected");
    one.heard_until_now().await.expect("connected");
    let bound = |id: &str| ("registertrigger".to_owned(), id.to_owned());
    let unbound = |id: &str| ("unregistertrigger".to_owned(), id.to_owned());
    assert_eq!(bindings(&mut older).await, [bound("same")]);
    // The newer provider is handed the bindings, the older one is told that they have gone.
    newer.say(&kind).await.expect("connected");
    assert_eq!(bindings(&mut newer).await, [bound("same")]);
    assert_eq!(bindings(&mut older).await, [unbound("same")]);
    // The newer binding of an id is the one.
    other.say(&trigger("same", "same::kind", "other::f")).await.expect("connected");
    other.heard_until_now().await.expect("connected");
    assert_eq!(bindings(&mut newer).await, [bound("same")]);
    // When the first one leaves, what has become another's stays.
    one.leave().await.expect("left");
    assert_eq!(bindings(&mut newer).await, []);
    newer.leave().await.expect("left");
    older
        .hear_of(|message| message["type"] == "registertrigger" && message["function_id"] == "other::f")
        .await
        .expect("the older provider serves it again");
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_calls_that_are_not_its_own_are_dropped_and_the_executors_answer_counts() {
    let (rig, bystander) = beside("  - name: iii-state\n").await;
    let (mut caller, mut echo, mut intruder) = (worker(&rig).await, worker(&rig).await, worker(&rig).await);
    echo.register("mine::echo").await.expect("connected");
    echo.heard_until_now().await.expect("connected");
    let id = caller.begin("mine::echo", &json!({})).await.expect("connected");
    let call = echo.hear_call().await.expect("a call");
    let of_state = caller.begin("state::get", &json!({ "scope": "s", "key": "k" })).await.expect("connected");
    for stolen in
        [&id, call["invocation_id"].as_str().expect("an id"), &of_state, "0192d6f0-0000-7000-8000-000000000bad"]
    {
        let call = json!({ "invocation_id": stolen, "function_id": "mine::echo" });
        for _ in 0..100 {
            intruder.answer(&call, &json!("stolen")).await.expect("connected");
        }
    }
    // Nor does a caller answer itself.
    caller.answer(&call, &json!("stolen")).await.expect("connected");
    assert_eq!(intruder.heard_until_now().await.expect("connected"), [Value::Null; 0]);
    caller.settled().await.expect("connected");
    echo.answer(&call, &json!("true")).await.expect("connected");
    echo.answer(&call, &json!("late")).await.expect("connected");
    assert_eq!(caller.answer_to(&id).await.expect("connected"), Ok(json!("true")));
    assert_eq!(caller.answer_to(&of_state).await.expect("connected"), Ok(Value::Null));
    echo.heard_until_now().await.expect("connected");
    assert_eq!(caller.heard_until_now().await.expect("connected"), [Value::Null; 0], "and once only");
    bystander.noticed_nothing(&rig).await;
}
