//! Topics in a store of this engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_builtin::{Binding, Call, ErrorBody, Trace};
use serde_json::{Value, json};

use crate::fake::{FakeEngine, answered, bind, call, next, raw, unbind};
use crate::{ask, has, in_memory, kept_in, numbers, publish, refuse, stopped, worker};

const TRIGGER: &str = "durable:subscriber";

/// A subscription that is tried again soon.
fn soon(topic: &str) -> Value {
    json!({ "topic": topic, "queue_config": { "backoffDelayMs": 1, "maxRetries": 3 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_gets_its_copy_under_the_publishers_trace() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (mut mail, mut ship) = (fake.note("mail"), fake.note("ship"));
    for function_id in ["mail", "ship"] {
        bind(&worker, TRIGGER, function_id, json!({ "topic": "orders" }));
    }
    let trace = Trace {
        traceparent: Some("00-3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f-9a8b7c6d5e4f3a2b-03".into()),
        baggage: Some("user=kim,iii.function.id=shop::buy".into()),
    };
    let data = Some(raw(&json!({ "topic": "orders", "data": { "sku": "A-17" } })));
    let call = Call { function_id: "iii::durable::publish".into(), data, trace: trace.clone(), caller: None };
    assert!(answered(worker.call(call)).await.expect("published").is_none());
    let seen = next(&mut mail).await;
    let baggage = Some("user=kim,iii.function.id=mail".to_owned());
    assert_eq!(seen, (json!({ "sku": "A-17" }), Trace { baggage, ..trace }));
    assert_eq!(next(&mut ship).await.0, json!({ "sku": "A-17" }));
    has(&worker, "orders", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_subscribes_to_waits_for_the_first_who_does() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    for number in 0..600 {
        publish(&worker, "t", json!(number)).await;
    }
    has(&worker, "t", 600, 0).await;
    let mut seen = fake.note("f");
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(numbers(&mut seen, 600).await, (0..600).collect());
    has(&worker, "t", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_a_function_that_has_gone_over_a_restart() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let worker = worker(&fake, kept_in(&folder)).await;
    let (mut f, mut g) = (fake.note("f"), fake.note("g"));
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    bind(&worker, TRIGGER, "g", json!({ "topic": "t" }));
    publish(&worker, "t", json!(0)).await;
    assert_eq!((next(&mut f).await.0, next(&mut g).await.0), (json!(0), json!(0)));
    unbind(&worker, TRIGGER, "f");
    publish(&worker, "t", json!(1)).await;
    assert_eq!(next(&mut g).await.0, json!(1));
    has(&worker, "t", 1, 0).await;
    let worker = stopped(worker, &kept_in(&folder), &fake).await;
    worker.start().await.expect("started");
    // Nobody is bound yet: both are still known.
    publish(&worker, "t", json!(2)).await;
    has(&worker, "t", 3, 0).await;
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(numbers(&mut f, 2).await, [1, 2].into());
    has(&worker, "t", 1, 0).await;
    bind(&worker, TRIGGER, "g", json!({ "topic": "t" }));
    assert_eq!(next(&mut g).await.0, json!(2));
    has(&worker, "t", 0, 0).await;
    assert!(f.try_recv().is_err() && g.try_recv().is_err(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_registered_again_is_one_consumer() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let mut seen = fake.note("f");
    for _ in 0..3 {
        bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    }
    // A replica: another trigger of the same function.
    let replica = Binding {
        id: "replica".into(),
        trigger_type: TRIGGER.into(),
        function_id: "f".into(),
        config: json!({ "topic": "t" }),
        owner: None,
        vm: None,
    };
    worker.bind(replica).expect("bound");
    publish(&worker, "t", json!(1)).await;
    assert_eq!(next(&mut seen).await.0, json!(1));
    has(&worker, "t", 0, 0).await;
    assert!(seen.try_recv().is_err(), "called twice");
    let listed = ask(&worker, "engine::queue::list_topics", json!({})).await;
    let rows = [
        json!({ "name": "t", "broker_type": "builtin", "subscriber_count": 1 }),
        json!({ "name": "default", "broker_type": "function_queue", "subscriber_count": 10 }),
    ];
    assert_eq!(listed, json!(rows));
    worker.unbind(TRIGGER, "replica");
    publish(&worker, "t", json!(2)).await;
    assert_eq!(next(&mut seen).await.0, json!(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_says_no_drops_and_one_that_fails_is_a_failed_attempt() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    fake.offer("is_large", |data| async move { Ok(json!(data["n"].as_u64() > Some(10))) });
    let mut seen = fake.note("f");
    bind(&worker, TRIGGER, "f", json!({ "topic": "t", "condition_function_id": "is_large" }));
    publish(&worker, "t", json!({ "n": 1 })).await;
    publish(&worker, "t", json!({ "n": 11 })).await;
    assert_eq!(next(&mut seen).await.0, json!({ "n": 11 }));
    has(&worker, "t", 0, 0).await;
    refuse(&fake, "is_large");
    bind(
        &worker,
        TRIGGER,
        "f",
        json!({ "topic": "t", "condition_function_id": "is_large",
        "queue_config": { "maxRetries": 1 } }),
    );
    publish(&worker, "t", json!({ "n": 12 })).await;
    has(&worker, "t", 0, 1).await;
    assert!(seen.try_recv().is_err(), "delivered though the condition failed or said no");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_too_often_is_dead_and_can_be_put_back_or_thrown_away() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    fake.offer("f", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(ErrorBody::new("invocation_failed", "stock is empty")) }
    });
    bind(&worker, TRIGGER, "f", soon("t"));
    for number in 0..3 {
        publish(&worker, "t", json!(number)).await;
        has(&worker, "t", 0, number + 1).await;
    }
    assert_eq!(attempts.load(Ordering::SeqCst), 9, "three times each");
    assert_eq!(
        ask(&worker, "engine::queue::dlq_topics", json!({})).await,
        json!([{ "topic": "t", "broker_type": "builtin", "message_count": 3 }])
    );
    let dead = ask(&worker, "engine::queue::dlq_messages", json!({ "topic": "t" })).await;
    let payloads: Vec<_> = dead.as_array().expect("a list").iter().map(|row| row["payload"].clone()).collect();
    assert_eq!(payloads, [2, 1, 0], "newest first");
    assert_eq!((&dead[0]["retries"], &dead[0]["size_bytes"]), (&json!(3), &json!(1)));
    assert_eq!(dead[0]["error"], "invocation_failed: stock is empty");
    let page = ask(&worker, "engine::queue::dlq_messages", json!({ "topic": "t", "offset": 1, "limit": 1 })).await;
    assert_eq!(page[0]["payload"], json!(1));
    let [newest, middle] = [&dead[0]["id"], &dead[1]["id"]];
    let about = |id: &Value| json!({ "queue": "t", "message_id": id });
    assert_eq!(ask(&worker, "iii::queue::discard_message", about(newest)).await["redriven"], 1);
    assert_eq!(ask(&worker, "iii::queue::discard_message", about(newest)).await["redriven"], 0);
    let mut seen = fake.note("f");
    let redriven = ask(&worker, "iii::queue::redrive_message", about(middle)).await;
    assert_eq!(redriven, json!({ "queue": "t", "message_id": middle, "redriven": 1 }));
    assert_eq!(next(&mut seen).await.0, json!(1));
    let redriven = ask(&worker, "iii::queue::redrive", json!({ "topic": "t" })).await;
    assert_eq!(redriven, json!({ "queue": "t", "redriven": 1 }));
    assert_eq!(next(&mut seen).await.0, json!(0));
    has(&worker, "t", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_topic_keeps_its_order_over_failures() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let attempts = Arc::new(AtomicUsize::new(0));
    fake.offer("f", move |data| {
        // Every third attempt succeeds.
        let succeeds = attempts.fetch_add(1, Ordering::SeqCst) % 3 == 2;
        if succeeds {
            sender.send((data, ())).expect("a reader");
        }
        async move { if succeeds { Ok(Value::Null) } else { Err(ErrorBody::new("invocation_failed", "not yet")) } }
    });
    let queue_config = json!({ "type": "fifo", "backoffDelayMs": 1, "concurrency": 5 });
    bind(&worker, TRIGGER, "f", json!({ "topic": "t", "queue_config": queue_config }));
    for number in 0..20 {
        publish(&worker, "t", json!(number)).await;
    }
    for number in 0..20 {
        assert_eq!(next(&mut seen).await.0, json!(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_be_delayed_and_a_delivery_may_take_too_long() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let mut seen = fake.note("late");
    bind(&worker, TRIGGER, "late", json!({ "topic": "a", "queue_config": { "delaySeconds": 1 } }));
    let published = std::time::Instant::now();
    publish(&worker, "a", json!(1)).await;
    next(&mut seen).await;
    assert!(published.elapsed().as_millis() >= 990, "not before its time");
    fake.offer("stuck", |_| std::future::pending());
    let queue_config = json!({ "visibilityTimeout": 1, "maxRetries": 1 });
    bind(&worker, TRIGGER, "stuck", json!({ "topic": "b", "queue_config": queue_config }));
    publish(&worker, "b", json!(1)).await;
    has(&worker, "b", 0, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_and_triggers_that_do_not_fit_are_refused() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    for (function_id, payload, code) in [
        ("iii::durable::publish", json!({ "data": 1 }), "topic_not_set"),
        ("iii::durable::publish", json!({ "topic": "" }), "topic_not_set"),
        ("iii::durable::publish", json!(7), "deserialization_error"),
        ("iii::durable::publish", json!({ "topic": "t".repeat(2000) }), "publish_failed"),
        ("iii::queue::redrive", json!({}), "queue_not_set"),
        ("iii::queue::redrive_message", json!({ "queue": "q" }), "message_id_not_set"),
        ("iii::queue::discard_message", json!({ "message_id": "m" }), "queue_not_set"),
        ("engine::queue::topic_stats", json!({}), "topic_required"),
        ("engine::queue::dlq_messages", json!({ "topic": null }), "topic_required"),
    ] {
        let error = call(&worker, function_id, payload.clone()).await.expect_err("refused");
        assert_eq!(error.code, code, "{function_id} {payload}");
    }
    let bad = Binding {
        id: "bad".into(),
        trigger_type: TRIGGER.into(),
        function_id: "f".into(),
        config: json!({ "topic": "t", "queue_config": { "backoffType": "random" } }),
        owner: None,
        vm: None,
    };
    let error = worker.bind(bad).expect_err("refused");
    assert_eq!(error.code, "trigger_registration_failed");
    assert!(error.message.contains("backoffType") && error.message.contains("random"), "{error}");
    // Accepted, and never fires.
    bind(&worker, TRIGGER, "f", json!({ "topic": "" }));
    unbind(&worker, TRIGGER, "f");
}
