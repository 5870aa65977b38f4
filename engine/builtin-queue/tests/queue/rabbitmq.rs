//! A real RabbitMQ.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_builtin::ErrorBody;
use serde_json::{Value, json};
use test_rig::TestRabbitMq;
use tokio::sync::Semaphore;

use crate::fake::{FakeEngine, bind, call, next, unbind};
use crate::{ask, enqueue, has, numbers, publish, refuse, worker};

const TRIGGER: &str = "durable:subscriber";

fn on(broker: &TestRabbitMq) -> Value {
    let queues = json!({
        "q": { "backoff_ms": 5, "max_retries": 3 },
        "narrow": { "concurrency": 2 },
        "ordered": { "type": "fifo", "message_group_field": "g", "backoff_ms": 1, "max_retries": 100 },
    });
    let config = json!({ "amqp_url": broker.url() });
    json!({ "adapter": { "name": "rabbitmq", "config": config }, "queue_configs": queues })
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_queues_and_dead_letters_work_on_a_broker() {
    let broker = TestRabbitMq::start();
    let fake = FakeEngine::new();
    let worker = worker(&fake, on(&broker)).await;
    // Held until the first function subscribes; then every function has its copy.
    publish(&worker, "t", json!(0)).await;
    let (mut f, mut g) = (fake.note("f"), fake.note("g"));
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(next(&mut f).await.0, json!(0));
    bind(&worker, TRIGGER, "g", json!({ "topic": "t" }));
    publish_until_both(&worker, &mut f, &mut g).await;
    // What comes for a function that has gone waits.
    unbind(&worker, TRIGGER, "f");
    publish(&worker, "t", json!(100)).await;
    assert_eq!(next(&mut g).await.0, json!(100));
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(next(&mut f).await.0, json!(100));
    // Retries, and dead letters.
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    fake.offer("bad", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(ErrorBody::new("invocation_failed", "not today")) }
    });
    for number in 0..3 {
        enqueue(&worker, "q", "bad", json!(number)).await.expect("a receipt");
        has(&worker, "q", 0, number + 1).await;
    }
    assert_eq!(attempts.load(Ordering::SeqCst), 9, "three times each");
    let dead = ask(&worker, "engine::queue::dlq_messages", json!({ "topic": "q", "offset": 1, "limit": 5 })).await;
    let payloads: Vec<_> = dead.as_array().expect("a list").iter().map(|row| row["payload"].clone()).collect();
    assert_eq!(payloads, [1, 0], "newest first");
    assert_eq!(dead[0]["retries"], 3);
    let dead_topics = ask(&worker, "engine::queue::dlq_topics", json!({})).await;
    assert_eq!(dead_topics, json!([{ "topic": "q", "broker_type": "rabbitmq", "message_count": 3 }]));
    let about = json!({ "queue": "q", "message_id": dead[0]["id"] });
    assert_eq!(ask(&worker, "iii::queue::discard_message", about.clone()).await["redriven"], 1);
    assert_eq!(ask(&worker, "iii::queue::redrive_message", about).await["redriven"], 0);
    let mut bad = fake.note("bad");
    assert_eq!(ask(&worker, "iii::queue::redrive", json!({ "queue": "q" })).await["redriven"], 2);
    assert_eq!(numbers(&mut bad, 2).await, [0, 2].into());
    has(&worker, "q", 0, 0).await;
    worker.stop().await;
}

/// A subscription is there a moment after it was asked for.
async fn publish_until_both(
    worker: &Arc<dyn engine_builtin::Builtin>,
    f: &mut tokio::sync::mpsc::UnboundedReceiver<(Value, engine_builtin::Trace)>,
    g: &mut tokio::sync::mpsc::UnboundedReceiver<(Value, engine_builtin::Trace)>,
) {
    let mut number = 0;
    while g.try_recv().is_err() {
        number += 1;
        publish(worker, "t", json!(number)).await;
        assert_eq!(next(f).await.0, json!(number));
    }
    while let Ok(Some((seen, _))) = tokio::time::timeout(std::time::Duration::from_millis(500), g.recv()).await {
        assert!(seen.as_u64() <= Some(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_outlive_a_broker_that_is_killed() {
    let mut broker = TestRabbitMq::start();
    let fake = FakeEngine::new();
    let worker = worker(&fake, on(&broker)).await;
    let (gate, most, now) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (opened, highest) = (Arc::clone(&gate), Arc::clone(&most));
    fake.offer("f", move |data| {
        let (gate, most, now, sender) = (Arc::clone(&opened), Arc::clone(&highest), Arc::clone(&now), sender.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.expect("open").forget();
            now.fetch_sub(1, Ordering::SeqCst);
            sender.send((data, ())).expect("a reader");
            Ok(Value::Null)
        }
    });
    for number in 0..20 {
        enqueue(&worker, "narrow", "f", json!(number)).await.expect("a receipt");
    }
    gate.add_permits(5);
    let before = numbers(&mut seen, 5).await;
    assert!(most.load(Ordering::SeqCst) <= 2, "more at once than the queue allows");
    broker.kill();
    let refused = call(&worker, "iii::durable::publish", json!({ "topic": "t", "data": 1 })).await;
    assert_eq!(refused.expect_err("nobody has it").code, "publish_failed");
    broker.restart();
    gate.add_permits(1000);
    let mut all = before;
    while all.len() < 20 {
        all.insert(next(&mut seen).await.0.as_u64().expect("a number"));
    }
    enqueue(&worker, "narrow", "f", json!(20)).await.expect("a receipt");
    while !all.contains(&20) {
        all.insert(next(&mut seen).await.0.as_u64().expect("a number"));
    }
    assert_eq!(all, (0..=20).collect());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_queue_on_a_broker_keeps_its_order_over_failures() {
    let broker = TestRabbitMq::start();
    let fake = FakeEngine::new();
    let first = worker(&fake, on(&broker)).await;
    refuse(&fake, "f");
    for number in 0..10 {
        enqueue(&first, "ordered", "f", json!({ "g": number % 2, "n": number })).await.expect("a receipt");
    }
    first.stop().await;
    drop(first);
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let attempts = AtomicUsize::new(0);
    fake.offer("f", move |data| {
        let succeeds = attempts.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        if succeeds {
            sender.send(data["n"].clone()).expect("a reader");
        }
        async move { if succeeds { Ok(Value::Null) } else { Err(ErrorBody::new("invocation_failed", "not yet")) } }
    });
    let second = worker(&fake, on(&broker)).await;
    for number in 0..10 {
        assert_eq!(next(&mut seen).await, json!(number));
    }
    second.stop().await;
}
