//! Named queues in a store of this engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_builtin::ErrorBody;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::fake::{FakeEngine, PATIENCE, next};
use crate::{ask, enqueue, has, kept_in, numbers, refuse, stopped, worker};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_queue_has_a_receipt_and_reaches_its_function() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    settings["queue_configs"] = json!({
        "mail": { "backoff_ms": 1, "max_retries": 2 },
        "orders": { "type": "fifo", "message_group_field": "customer" },
    });
    let worker = worker(&fake, settings).await;
    let mut seen = fake.note("f");
    let receipt = enqueue(&worker, "default", "f", json!({ "n": 1 })).await.expect("a receipt");
    assert!(uuid::Uuid::parse_str(&receipt).is_ok(), "{receipt}");
    assert_eq!(next(&mut seen).await.0, json!({ "n": 1 }));
    for (queue, data) in [("nowhere", json!({})), ("orders", json!({ "customer": null })), ("orders", json!([1]))] {
        let error = enqueue(&worker, queue, "f", data).await.expect_err("refused");
        assert_eq!(error.code, "enqueue_error");
        assert!(error.message.contains(queue), "{error}");
    }
    enqueue(&worker, "mail", "nobody", json!(2)).await.expect("the function need not exist");
    has(&worker, "mail", 0, 1).await;
    let stats = ask(&worker, "engine::queue::topic_stats", json!({ "queue": "mail" })).await;
    assert_eq!((&stats["consumer_count"], &stats["config"]["max_retries"]), (&json!(10), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_calls_are_in_flight_than_the_queue_allows() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    settings["queue_configs"] = json!({ "narrow": { "concurrency": 3 } });
    let worker = worker(&fake, settings.clone()).await;
    let (now, most, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (counted, highest, opened) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&gate));
    fake.offer("f", move |_| {
        let (now, most, gate) = (Arc::clone(&counted), Arc::clone(&highest), Arc::clone(&opened));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.expect("open").forget();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(Value::Null)
        }
    });
    for number in 0..30 {
        enqueue(&worker, "narrow", "f", json!(number)).await.expect("a receipt");
    }
    gate.add_permits(10);
    has(&worker, "narrow", 20, 0).await;
    // Only this queue's consumer is told.
    settings["queue_configs"]["narrow"]["concurrency"] = json!(5);
    worker.apply(settings).await.expect("applied");
    gate.add_permits(20);
    has(&worker, "narrow", 0, 0).await;
    assert!((3..=5).contains(&most.load(Ordering::SeqCst)), "{most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_hang_keep_a_queue_no_longer_than_it_allows() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    settings["queue_configs"] = json!({ "q": { "timeout_ms": 50, "max_retries": 2, "backoff_ms": 1 } });
    let worker = worker(&fake, settings).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    fake.offer("hangs", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    let mut answers = fake.note("answers");
    for number in 0..10 {
        enqueue(&worker, "q", "hangs", json!(number)).await.expect("a receipt");
    }
    enqueue(&worker, "q", "answers", json!("behind them")).await.expect("a receipt");
    assert_eq!(next(&mut answers).await.0, json!("behind them"));
    has(&worker, "q", 0, 10).await;
    assert_eq!(calls.load(Ordering::SeqCst), 20, "each was tried again");
    let dead = ask(&worker, "engine::queue::dlq_messages", json!({ "topic": "q" })).await;
    assert_eq!((&dead[0]["error"], &dead[0]["retries"]), (&json!("no answer within 50 ms"), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_a_fifo_queue_keep_their_order_over_failures_and_a_restart() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    let queue = json!({ "type": "fifo", "message_group_field": "g", "backoff_ms": 1, "max_retries": 100 });
    settings["queue_configs"] = json!({ "q": queue });
    let first = worker(&fake, settings.clone()).await;
    // Fails now; some have failed before the restart.
    refuse(&fake, "f");
    for number in 0..30 {
        enqueue(&first, "q", "f", json!({ "g": number % 3, "n": number })).await.expect("a receipt");
    }
    let second = stopped(first, &settings, &fake).await;
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let attempts = AtomicUsize::new(0);
    fake.offer("f", move |data| {
        let succeeds = attempts.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        if succeeds {
            sender.send(data).expect("a reader");
        }
        async move { if succeeds { Ok(Value::Null) } else { Err(ErrorBody::new("invocation_failed", "not yet")) } }
    });
    second.start().await.expect("started");
    let mut last = [None; 3];
    for _ in 0..30 {
        let data = next(&mut seen).await;
        let (group, number) = (data["g"].as_u64().expect("a group"), data["n"].as_u64());
        let last = &mut last[usize::try_from(group).expect("one of three")];
        assert!(*last < number, "{data} after {last:?}");
        *last = number;
    }
    has(&second, "q", 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_stay_in_a_queue_that_is_not_configured_any_more() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    settings["queue_configs"] = json!({ "q": { "concurrency": 1 } });
    let worker = worker(&fake, settings.clone()).await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    fake.offer("f", move |_| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("open").forget();
            Ok(Value::Null)
        }
    });
    for number in 0..5 {
        enqueue(&worker, "q", "f", json!(number)).await.expect("a receipt");
    }
    worker.apply(kept_in(&folder)).await.expect("applied");
    gate.add_permits(1);
    has(&worker, "q", 4, 0).await;
    let error = enqueue(&worker, "q", "f", json!(5)).await.expect_err("refused");
    assert_eq!(error.code, "enqueue_error");
    let mut seen = fake.note("f");
    worker.apply(settings).await.expect("applied");
    assert_eq!(numbers(&mut seen, 4).await, (1..5).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_panics_is_a_failed_attempt() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let mut settings = kept_in(&folder);
    settings["queue_configs"] = json!({ "default": { "max_retries": 1 } });
    let worker = worker(&fake, settings).await;
    fake.offer("f", |data| async move { if data == json!(0) { panic!("on purpose") } else { Ok(data) } });
    enqueue(&worker, "default", "f", json!(0)).await.expect("a receipt");
    enqueue(&worker, "default", "f", json!(1)).await.expect("a receipt");
    tokio::time::timeout(PATIENCE, has(&worker, "default", 0, 1)).await.expect("one is dead");
}
