//! Topics on a real Redis.

use serde_json::json;
use test_rig::TestRedis;

use crate::fake::{FakeEngine, bind, call, next, unbind};
use crate::{ask, enqueue, has, numbers, publish, refuse, worker};

const TRIGGER: &str = "durable:subscriber";

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_on_redis_outlives_its_consumers() {
    let redis = TestRedis::start();
    let settings = json!({ "adapter": { "name": "redis", "config": { "redis_url": redis.url() } } });
    let fake = FakeEngine::new();
    let first = worker(&fake, settings.clone()).await;
    publish(&first, "t", json!(0)).await;
    let mut seen = fake.note("f");
    bind(&first, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(next(&mut seen).await.0, json!(0), "it was held");
    publish(&first, "t", json!(1)).await;
    assert_eq!(next(&mut seen).await.0, json!(1));
    has(&first, "t", 0, 0).await;
    unbind(&first, TRIGGER, "f");
    publish(&first, "t", json!(2)).await;
    has(&first, "t", 1, 0).await;
    // One that dies over a message leaves it to the next.
    let (sender, mut called) = tokio::sync::mpsc::unbounded_channel();
    fake.offer("f", move |data| {
        sender.send(data).expect("a reader");
        std::future::pending()
    });
    bind(&first, TRIGGER, "f", json!({ "topic": "t" }));
    publish(&first, "t", json!(3)).await;
    let both = [next(&mut called).await, next(&mut called).await];
    assert!(both.contains(&json!(2)) && both.contains(&json!(3)), "{both:?}");
    first.stop().await;
    drop(first);
    let mut seen = fake.note("f");
    let second = worker(&fake, settings).await;
    bind(&second, TRIGGER, "f", json!({ "topic": "t" }));
    assert_eq!(numbers(&mut seen, 2).await, [2, 3].into());
    has(&second, "t", 0, 0).await;
    // There is one attempt, and no dead letters.
    refuse(&fake, "f");
    publish(&second, "t", json!(4)).await;
    has(&second, "t", 0, 0).await;
    assert_eq!(ask(&second, "engine::queue::dlq_messages", json!({ "topic": "t" })).await, json!([]));
    let error = call(&second, "iii::queue::redrive", json!({ "queue": "t" })).await.expect_err("refused");
    assert_eq!(error.code, "redrive_failed");
    // Named queues are written to, for whoever reads them.
    enqueue(&second, "default", "f", json!(5)).await.expect("a receipt");
    has(&second, "default", 1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_go_on_after_redis_was_restarted() {
    let mut redis = TestRedis::start();
    let settings = json!({ "adapter": { "name": "redis", "config": { "redis_url": redis.url() } } });
    let fake = FakeEngine::new();
    let worker = worker(&fake, settings).await;
    let mut seen = fake.note("f");
    bind(&worker, TRIGGER, "f", json!({ "topic": "t" }));
    publish(&worker, "t", json!(0)).await;
    assert_eq!(next(&mut seen).await.0, json!(0));
    redis.restart();
    let published = async {
        // Refused while nobody is there.
        while call(&worker, "iii::durable::publish", json!({ "topic": "t", "data": 1 })).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::fake::PATIENCE, published).await.expect("published");
    assert_eq!(next(&mut seen).await.0, json!(1));
}
