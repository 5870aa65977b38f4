//! Too many functions, and workers that take nothing of what they are sent.

use std::time::Duration;

use scenarios::RawWorker;
use serde_json::{Value, json};
use test_rig::eventually;
use tokio::task::JoinSet;

use crate::{beside, code, until_functions, worker};

const PATIENCE: Duration = Duration::from_secs(60);

/// What one connection may hold.
const SHARE: usize = 16_384;
const MANY: usize = 100_000;
const MIB: usize = 1 << 20;

fn registrations(prefix: &str, count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(move |n| json!({ "type": "registerfunction", "id": format!("{prefix}::{n}") }))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_workers_hundred_thousand_functions_its_share_is_taken_and_the_rest_refused() {
    let (rig, bystander) = beside("").await;
    let (mut caller, mut greedy) = (worker(&rig).await, worker(&rig).await);
    greedy.say_all(registrations("greedy", MANY)).await.expect("connected");
    assert_eq!(greedy.heard_until_now().await.expect("connected"), [Value::Null; 0]);
    let last = caller.begin(&format!("greedy::{}", SHARE - 1), &json!({})).await.expect("connected");
    let call = greedy.hear_call().await.expect("a call");
    greedy.answer(&call, &json!("taken")).await.expect("connected");
    assert_eq!(caller.answer_to(&last).await.expect("connected"), Ok(json!("taken")));
    for refused in [SHARE, MANY - 1] {
        let answer = caller.call(&format!("greedy::{refused}"), &json!({})).await.expect("connected");
        assert_eq!(code(&answer), Some("function_not_found"), "{answer:?}");
    }
    // There is room for others, and for itself once it gives something back.
    caller.register("modest::f").await.expect("connected");
    caller.settled().await.expect("connected");
    until_functions(&mut caller, "modest::", &["modest::f"]).await;
    greedy.say(&json!({ "type": "unregisterfunction", "id": "greedy::0" })).await.expect("connected");
    greedy.register("exchanged::f").await.expect("connected");
    greedy.settled().await.expect("connected");
    until_functions(&mut caller, "exchanged::", &["exchanged::f"]).await;
    greedy.leave().await.expect("left");
    until_functions(&mut caller, "greedy::", &[]).await;
    let told = rig.log().matches("registration refused").count();
    assert!((1..100).contains(&told), "{told} lines in the log");
    let counted = || rig.log().contains("lines like those before were left out").then_some(());
    let counted = tokio::task::block_in_place(|| eventually(PATIENCE, counted));
    assert!(counted.is_some(), "the log does not say how many more there were");
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_functions_of_ten_workers_are_listed_called_and_forgotten() {
    const WORKERS: usize = 10;
    let (rig, bystander) = beside("").await;
    let mut caller = worker(&rig).await;
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let mut worker = worker(&rig).await;
        worker.say_all(registrations(&format!("many::{n}"), MANY / WORKERS)).await.expect("connected");
        workers.push(worker);
    }
    for worker in &mut workers {
        worker.settled().await.expect("connected");
    }
    for (n, worker) in workers.iter_mut().enumerate() {
        let id = caller.begin(&format!("many::{n}::{}", n * 1111), &json!({})).await.expect("connected");
        let call = worker.hear_call().await.expect("a call");
        worker.answer(&call, &json!(n)).await.expect("connected");
        assert_eq!(caller.answer_to(&id).await.expect("connected"), Ok(json!(n)));
    }
    assert_eq!(crate::functions(&mut caller, "many::").await.len(), MANY);
    for worker in workers {
        worker.leave().await.expect("left");
    }
    until_functions(&mut caller, "many::", &[]).await;
    bystander.noticed_nothing(&rig).await;
}

/// A call, or a message of any other kind, that makes the engine send `bytes` to somebody.
fn heavy(function: &str, bytes: usize) -> Value {
    json!({ "type": "invokefunction", "function_id": function, "action": { "type": "void" }, "data": "x".repeat(bytes) })
}

/// 256 MiB may wait for one connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_reads_its_calls_is_cut_off_and_its_callers_are_answered() {
    let (rig, bystander) = beside("").await;
    let mut deaf = worker(&rig).await;
    deaf.register("deaf::f").await.expect("connected");
    deaf.settled().await.expect("connected");
    let mut caller = worker(&rig).await;
    let waiting = caller.begin("deaf::f", &json!({})).await.expect("connected");
    caller.settled().await.expect("connected");
    // Each of these producers is made to wait after its first message: many of them are needed.
    let mut producers = JoinSet::new();
    for _ in 0..40 {
        let url = rig.url();
        producers.spawn(async move {
            let mut producer = RawWorker::connect(&url).await.expect("connected");
            producer.say(&heavy("deaf::f", 8 * MIB)).await.expect("connected");
            producer.settled().await.expect("answered, sooner or later");
        });
    }
    let answer = caller.answer_to(&waiting).await.expect("connected");
    assert_eq!(code(&answer), Some("invocation_stopped"), "{answer:?}");
    producers.join_all().await;
    deaf.ended().await.expect("cut off");
    until_functions(&mut caller, "deaf::", &[]).await;
    assert!(rig.log().contains("does not read"), "the log says so");
    bystander.noticed_nothing(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_asks_and_never_reads_the_answers_is_cut_off() {
    let (rig, bystander) = beside("  - name: iii-state\n").await;
    let mut deaf = worker(&rig).await;
    let value = json!({ "scope": "s", "key": "k", "value": "x".repeat(8 * MIB) });
    assert!(deaf.call("state::set", &value).await.expect("connected").is_ok());
    let place = json!({ "scope": "s", "key": "k" });
    let asking = (0..100).map(|n| {
        json!({
            "type": "invokefunction", "function_id": "state::get", "data": place,
            "invocation_id": format!("0192d6f0-0000-7000-8000-{n:012}"),
        })
    });
    deaf.say_all(asking).await.expect("connected");
    let cut = tokio::task::spawn_blocking(move || {
        let cut = || rig.log().contains("does not read").then_some(());
        (eventually(PATIENCE, cut), rig)
    });
    let (cut, rig) = cut.await.expect("no panic");
    assert!(cut.is_some(), "the log says so");
    deaf.ended().await.expect("cut off");
    let mut other = worker(&rig).await;
    let kept = other.call("state::get", &place).await.expect("connected").expect("a value");
    assert_eq!(kept.as_str().map(str::len), Some(8 * MIB), "what was acknowledged is there");
    bystander.noticed_nothing(&rig).await;
}
