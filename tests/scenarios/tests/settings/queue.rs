//! Queues and topics: their rules change at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_client::{Call, ErrorBody, FunctionSpec};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use test_rig::{Rig, TestRabbitMq, TestRedis};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::{PATIENCE, Peer, engine, set, until};

/// Puts a call into a queue; `Err` is the code of the refusal.
fn enqueue(rig: &Rig, queue: &str, function: &str, data: &Value) -> Result<(), String> {
    let id = "3f2a9c7a-6f1f-4b5d-8e2c-0a1b2c3d4e5f";
    let call = json!({
        "type": "invokefunction", "invocation_id": id, "function_id": function, "data": data,
        "action": { "type": "enqueue", "queue": queue },
    });
    let answer = async {
        let (mut socket, _) = connect_async(rig.url()).await.expect("connected");
        socket.send(Message::text(call.to_string())).await.expect("sent");
        loop {
            let message = socket.next().await.expect("an answer").expect("a message");
            let Ok(text) = message.to_text() else { continue };
            let answer: Value = serde_json::from_str(text).unwrap_or_default();
            if answer["invocation_id"] == id {
                return answer;
            }
        }
    };
    let runtime = Runtime::new().expect("a runtime");
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time") });
    match answer["error"]["code"].as_str() {
        Some(code) => Err(code.to_owned()),
        None => Ok(()),
    }
}

fn stats(rig: &Rig, topic: &str) -> Option<Value> {
    rig.trigger("engine::queue::topic_stats", &json!({ "topic": topic })).ok()
}

/// A function that fails, and how often it was called.
fn broken(rig: &Rig, peer: &Peer) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    peer.offer(rig, "work::broken", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(ErrorBody::new("BROKEN", "on purpose"))
    });
    calls
}

/// A function that answers as often as it is let, and how many calls have begun.
fn gated(rig: &Rig, peer: &Peer) -> (Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (open, counted) = (Arc::clone(&gate), Arc::clone(&begun));
    {
        let _context = peer.runtime.enter();
        peer.client.register(FunctionSpec { id: "work::gated".into(), ..FunctionSpec::default() }, move |_: Call| {
            let open = Arc::clone(&open);
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                open.acquire().await.expect("an open gate").forget();
                Ok(None)
            }
        });
    }
    until(rig, "work::gated", || rig.trigger("engine::functions::info", &json!({ "function_id": "work::gated" })).ok());
    (gate, begun)
}

#[test]
fn a_queue_takes_its_rules_at_once() {
    let rig = engine("  - {name: iii-queue}\n");
    let peer = Peer::connect(&rig);
    let attempts = broken(&rig, &peer);
    let rules = |rules: &Value| set(&rig, "iii-queue", &json!({ "queue_configs": { "jobs": rules } }));
    assert_eq!(enqueue(&rig, "jobs", "work::broken", &json!({})), Err("enqueue_error".to_owned()));
    for (round, (retries, total)) in [(1, 1), (4, 5)].into_iter().enumerate() {
        rules(&json!({ "max_retries": retries, "backoff_ms": 1 }));
        enqueue(&rig, "jobs", "work::broken", &json!({})).expect("taken");
        until(&rig, "a dead message", || (stats(&rig, "jobs")?["dlq_depth"] == round + 1).then_some(()));
        assert_eq!(attempts.load(Ordering::SeqCst), total);
    }
    // With a long pause it is tried once, and waits.
    rules(&json!({ "max_retries": 4, "backoff_ms": 3_600_000 }));
    enqueue(&rig, "jobs", "work::broken", &json!({})).expect("taken");
    until(&rig, "an attempt", || (attempts.load(Ordering::SeqCst) == 6).then_some(()));
    until(&rig, "a message that waits", || (stats(&rig, "jobs")?["depth"] == 1).then_some(()));

    let (gate, begun) = gated(&rig, &peer);
    rules(&json!({ "concurrency": 2, "poll_interval_ms": 50 }));
    assert_eq!(stats(&rig, "jobs").expect("stats")["config"]["poll_interval_ms"], 50);
    for _ in 0..5 {
        enqueue(&rig, "jobs", "work::gated", &json!({})).expect("taken");
    }
    until(&rig, "two calls", || (begun.load(Ordering::SeqCst) == 2).then_some(()));
    rules(&json!({ "concurrency": 4 }));
    until(&rig, "more calls", || (begun.load(Ordering::SeqCst) > 2).then_some(()));
    assert!(begun.load(Ordering::SeqCst) <= 4 + 2, "those of before may still be there");
    gate.add_permits(100);
    until(&rig, "all are called", || (begun.load(Ordering::SeqCst) == 5).then_some(()));

    // The gate is shut: only the time that a call may take ends one.
    gate.forget_permits(100);
    rules(&json!({ "timeout_ms": 100, "max_retries": 2, "backoff_ms": 1 }));
    let dead = || stats(&rig, "jobs").and_then(|stats| stats["dlq_depth"].as_u64());
    let before = dead().expect("stats");
    enqueue(&rig, "jobs", "work::gated", &json!({})).expect("taken");
    until(&rig, "a message that is given up", || (dead()? == before + 1).then_some(()));
    assert_eq!(begun.load(Ordering::SeqCst), 7);
    gate.add_permits(100);

    rules(&json!({ "type": "fifo", "message_group_field": "order" }));
    let grouped = |data: &Value| enqueue(&rig, "jobs", "work::gated", data);
    assert_eq!(grouped(&json!({ "customer": 1 })), Err("enqueue_error".to_owned()));
    assert_eq!(grouped(&json!({ "order": 1 })), Ok(()));
    rules(&json!({ "type": "fifo", "message_group_field": "customer" }));
    assert_eq!(grouped(&json!({ "customer": 1 })), Ok(()));
    rules(&json!({ "type": "standard" }));
    assert_eq!(grouped(&json!({})), Ok(()));
}

#[test]
fn subscriptions_follow_the_adapters_defaults_at_once() {
    let rig = engine("  - {name: iii-queue}\n");
    let peer = Peer::connect(&rig);
    let attempts = broken(&rig, &peer);
    let (gate, begun) = gated(&rig, &peer);
    let defaults = |config: &Value| {
        set(&rig, "iii-queue", &json!({ "adapter": { "name": "builtin", "config": config } }));
    };
    let publish = |topic: &str| {
        let _ = rig.call("iii::durable::publish", &json!({ "topic": topic, "data": {} }));
    };
    peer.bind(&rig, "durable:subscriber", "work::broken", &json!({ "topic": "bad" }));
    peer.bind(&rig, "durable:subscriber", "work::gated", &json!({ "topic": "slow" }));
    for (round, (max, total)) in [(1, 1), (4, 5)].into_iter().enumerate() {
        defaults(&json!({ "max_attempts": max, "backoff_ms": 1, "save_interval_ms": 100, "poll_interval_ms": 50 }));
        publish("bad");
        until(&rig, "a dead message", || (stats(&rig, "bad")?["dlq_depth"] == round + 1).then_some(()));
        assert_eq!(attempts.load(Ordering::SeqCst), total);
    }
    defaults(&json!({ "backoff_ms": 3_600_000 }));
    publish("bad");
    until(&rig, "an attempt", || (attempts.load(Ordering::SeqCst) == 6).then_some(()));
    until(&rig, "a message that waits", || (stats(&rig, "bad")?["depth"] == 1).then_some(()));

    defaults(&json!({ "concurrency": 2 }));
    (0..6).for_each(|_| publish("slow"));
    until(&rig, "two calls", || (begun.load(Ordering::SeqCst) == 2).then_some(()));
    defaults(&json!({ "concurrency": 6 }));
    until(&rig, "more calls", || (begun.load(Ordering::SeqCst) > 2).then_some(()));
    gate.add_permits(6);
    until(&rig, "all are done", || (stats(&rig, "slow")?["depth"] == 0).then_some(()));
    // One after another, as many as there are.
    let before = begun.load(Ordering::SeqCst);
    defaults(&json!({ "mode": "fifo", "concurrency": 6 }));
    (0..3).for_each(|_| publish("slow"));
    for done in 1..=3 {
        until(&rig, "the next", || (begun.load(Ordering::SeqCst) == before + done).then_some(()));
        assert_eq!(begun.load(Ordering::SeqCst), before + done, "one at a time");
        gate.add_permits(1);
    }
    until(&rig, "all are done", || (stats(&rig, "slow")?["depth"] == 0).then_some(()));

    defaults(&json!({ "store_method": "file_based", "file_path": "./elsewhere" }));
    assert!(rig.project().join("elsewhere").exists());
    assert_eq!(stats(&rig, "bad").expect("stats")["depth"], 0, "what waits stays where it was");
    defaults(&json!({ "store_method": "in_memory" }));
    publish("nobody");
    assert_eq!(stats(&rig, "nobody").expect("stats")["depth"], 1);
    defaults(&json!({}));
    until(&rig, "the first store", || (stats(&rig, "bad")?["depth"] == 1).then_some(()));
}

#[test]
fn subscriptions_on_a_broker_follow_its_defaults_at_once() {
    let broker = TestRabbitMq::start();
    let rig = engine("  - {name: iii-queue}\n");
    let peer = Peer::connect(&rig);
    let attempts = broken(&rig, &peer);
    let (gate, begun) = gated(&rig, &peer);
    let defaults = |more: &Value| {
        let mut config = more.clone();
        config["amqp_url"] = json!(broker.url());
        set(&rig, "iii-queue", &json!({ "adapter": { "name": "rabbitmq", "config": config } }));
    };
    let publish = |topic: &str| {
        let _ = rig.call("iii::durable::publish", &json!({ "topic": topic, "data": {} }));
    };
    peer.bind(&rig, "durable:subscriber", "work::gated", &json!({ "topic": "slow" }));
    let quick = json!({ "topic": "bad", "queue_config": { "backoffDelayMs": 1 } });
    peer.bind(&rig, "durable:subscriber", "work::broken", &quick);
    for (round, (max, total)) in [(1, 1), (3, 4)].into_iter().enumerate() {
        defaults(&json!({ "max_attempts": max }));
        publish("bad");
        until(&rig, "a dead message", || (stats(&rig, "bad")?["dlq_depth"] == round + 1).then_some(()));
        assert_eq!(attempts.load(Ordering::SeqCst), total);
    }
    defaults(&json!({ "prefetch_count": 2 }));
    (0..6).for_each(|_| publish("slow"));
    until(&rig, "two calls", || (begun.load(Ordering::SeqCst) == 2).then_some(()));
    gate.add_permits(6);
    until(&rig, "all are called", || (begun.load(Ordering::SeqCst) == 6).then_some(()));
    until(&rig, "all are done", || (gate.available_permits() == 0).then_some(()));
    defaults(&json!({ "queue_mode": "fifo" }));
    (0..3).for_each(|_| publish("slow"));
    for done in 7..=9 {
        until(&rig, "the next", || (begun.load(Ordering::SeqCst) >= done).then_some(()));
        assert_eq!(begun.load(Ordering::SeqCst), done, "one at a time");
        gate.add_permits(1);
    }
}

#[test]
fn subscriptions_move_to_a_redis_and_to_another_engine_at_once() {
    let redis = TestRedis::start();
    let (rig, there) = (engine("  - {name: iii-queue}\n"), engine("  - {name: iii-queue}\n"));
    let peer = Peer::connect(&rig);
    let (gate, begun) = gated(&rig, &peer);
    gate.add_permits(100);
    peer.bind(&rig, "durable:subscriber", "work::gated", &json!({ "topic": "news" }));
    let publish_there = || {
        let _ = there.call("iii::durable::publish", &json!({ "topic": "news", "data": {} }));
    };
    let adapter = |name: &str, config: Value| json!({ "adapter": { "name": name, "config": config } });
    for engine in [&rig, &there] {
        set(engine, "iii-queue", &adapter("redis", json!({ "redis_url": redis.url() })));
    }
    publish_there();
    until(&rig, "a message over Redis", || (begun.load(Ordering::SeqCst) == 1).then_some(()));
    set(&there, "iii-queue", &json!({}));
    set(&rig, "iii-queue", &adapter("bridge", json!({ "bridge_url": there.url() })));
    publish_there();
    until(&rig, "a message of the other engine", || (begun.load(Ordering::SeqCst) == 2).then_some(()));
}
