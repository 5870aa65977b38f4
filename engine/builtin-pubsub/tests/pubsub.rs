//! The worker, inside one engine and over a real Redis.

mod fake;

use std::sync::Arc;

use engine_builtin::{Builtin, Call, Reply, Trace};
use fake::{FakeEngine, bind, call, next, raw, unbind};
use serde_json::{Value, json};
use test_rig::TestRedis;

async fn create(fake: &Arc<FakeEngine>, settings: Value) -> Arc<dyn Builtin> {
    builtin_pubsub::create(fake.engine(), settings).await.expect("a worker")
}

async fn publish(worker: &Arc<dyn Builtin>, topic: &str, data: Value) {
    let answer = call(worker, "publish", json!({ "topic": topic, "data": data })).await;
    assert_eq!(answer.expect("published"), None);
}

fn redis_at(redis: &TestRedis) -> Value {
    json!({ "adapter": { "name": "redis", "config": { "redis_url": redis.url() } } })
}

/// Publishes until one of them arrives: what was published meanwhile may be lost.
async fn publish_until_heard(
    worker: &Arc<dyn Builtin>,
    topic: &str,
    heard: &mut tokio::sync::mpsc::UnboundedReceiver<(Value, Trace)>,
) {
    let trying = async {
        loop {
            let _ = call(worker, "publish", json!({ "topic": topic, "data": "again" })).await;
            let pause = std::time::Duration::from_millis(100);
            if tokio::time::timeout(pause, heard.recv()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(fake::PATIENCE, trying).await.expect("heard");
}

#[tokio::test]
async fn a_message_reaches_every_subscription_of_its_topic_verbatim_with_its_publishers_trace() {
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    let (mut one, mut two, mut other) = (fake.note("one"), fake.note("two"), fake.note("other"));
    bind(&worker, "subscribe", "one", json!({ "topic": "news" }));
    bind(&worker, "subscribe", "two", json!({ "topic": "news" }));
    bind(&worker, "subscribe", "other", json!({ "topic": "sports" }));
    let trace = Trace { traceparent: Some("00-abc".into()), baggage: None };
    let data = json!({ "topic": "news", "data": [1, { "a": null }] });
    let reply =
        worker.call(Call { function_id: "publish".into(), data: Some(raw(&data)), trace: trace.clone(), caller: None });
    assert!(matches!(reply, Reply::Now(Ok(None))));
    for heard in [&mut one, &mut two] {
        assert_eq!(next(heard).await, (json!([1, { "a": null }]), trace.clone()));
    }
    publish(&worker, "sports", json!("goal")).await;
    assert_eq!(next(&mut other).await.0, json!("goal"), "nothing of `news` came before");
}

#[tokio::test]
async fn an_empty_topic_is_accepted_when_subscribed_and_refused_when_published() {
    let fake = FakeEngine::new();
    let worker = create(&fake, json!({})).await;
    let _never = fake.note("never");
    bind(&worker, "subscribe", "never", json!({ "topic": "" }));
    bind(&worker, "subscribe", "never either", Value::Null);
    let refused = call(&worker, "publish", json!({ "topic": "", "data": 1 })).await.expect_err("refused");
    assert_eq!(refused.code, "topic_not_set");
    let refused = call(&worker, "publish", json!({ "topic": 7 })).await.expect_err("refused");
    assert_eq!(refused.code, "deserialization_error");
}

#[tokio::test]
async fn only_a_literal_false_or_an_error_of_the_condition_skips_the_handler() {
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    let mut heard = fake.note("handler");
    fake.offer("is even", |data| async move { Ok(json!(data.as_u64().expect("a number") % 2 == 0)) });
    fake.offer("fails", |_| async { Err(engine_builtin::ErrorBody::new("no", "no")) });
    let mut skipped = fake.note("skipped");
    bind(&worker, "subscribe", "handler", json!({ "topic": "n", "condition_function_id": "is even" }));
    bind(&worker, "subscribe", "skipped", json!({ "topic": "n", "condition_function_id": "fails" }));
    for number in 0..4 {
        publish(&worker, "n", json!(number)).await;
    }
    assert_eq!(next(&mut heard).await.0, json!(0));
    assert_eq!(next(&mut heard).await.0, json!(2));
    assert!(skipped.try_recv().is_err());
}

#[tokio::test]
async fn a_binding_of_the_same_id_replaces_and_one_that_is_gone_hears_nothing() {
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    let mut heard = fake.note("handler");
    bind(&worker, "subscribe", "handler", json!({ "topic": "old" }));
    bind(&worker, "subscribe", "handler", json!({ "topic": "new" }));
    publish(&worker, "old", json!(1)).await;
    publish(&worker, "new", json!(2)).await;
    assert_eq!(next(&mut heard).await.0, json!(2));
    unbind(&worker, "subscribe", "handler");
    let mut last = fake.note("last");
    bind(&worker, "subscribe", "last", json!({ "topic": "new" }));
    publish(&worker, "new", json!(3)).await;
    assert_eq!(next(&mut last).await.0, json!(3));
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn engines_at_one_redis_hear_each_other_once() {
    let redis = TestRedis::start();
    let (here, there) = (FakeEngine::new(), FakeEngine::new());
    let (one, other) = (create(&here, redis_at(&redis)).await, create(&there, redis_at(&redis)).await);
    let (mut heard_here, mut heard_there) = (here.note("handler"), there.note("handler"));
    bind(&one, "subscribe", "handler", json!({ "topic": "news" }));
    bind(&other, "subscribe", "handler", json!({ "topic": "news" }));
    publish_until_heard(&one, "news", &mut heard_there).await;
    for number in 0..100 {
        publish(&one, "news", json!(number)).await;
    }
    for heard in [&mut heard_here, &mut heard_there] {
        let mut numbers = Vec::new();
        while numbers.len() < 100 {
            let (data, _) = next(heard).await;
            if data.is_number() {
                numbers.push(data);
            }
        }
        assert_eq!(numbers, (0..100).map(Value::from).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_subscription_hears_what_is_published_right_after_it() {
    let redis = TestRedis::start();
    let fake = FakeEngine::new();
    let worker = create(&fake, redis_at(&redis)).await;
    for number in 0..20 {
        let topic = format!("topic {number}");
        let mut heard = fake.note(&topic);
        bind(&worker, "subscribe", &topic, json!({ "topic": topic }));
        publish(&worker, &topic, json!(number)).await;
        assert_eq!(next(&mut heard).await.0, json!(number));
    }
}

#[tokio::test]
async fn subscriptions_are_back_when_the_redis_is() {
    let mut redis = TestRedis::start();
    let fake = FakeEngine::new();
    let worker = create(&fake, redis_at(&redis)).await;
    let mut heard = fake.note("handler");
    bind(&worker, "subscribe", "handler", json!({ "topic": "news" }));
    publish(&worker, "news", json!("before")).await;
    assert_eq!(next(&mut heard).await.0, json!("before"));
    redis.kill();
    let failed = call(&worker, "publish", json!({ "topic": "news", "data": 1 })).await.expect_err("no server");
    assert_eq!(failed.code, "publish_failed");
    let mut late = fake.note("late");
    bind(&worker, "subscribe", "late", json!({ "topic": "while away" }));
    redis.restart();
    publish_until_heard(&worker, "news", &mut heard).await;
    publish(&worker, "while away", json!("after")).await;
    assert_eq!(next(&mut late).await.0, json!("after"));
}

#[tokio::test]
async fn an_adapter_is_swapped_with_its_subscriptions_and_one_that_fails_changes_nothing() {
    let (redis, other) = (TestRedis::start(), TestRedis::start());
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    let mut heard = fake.note("handler");
    bind(&worker, "subscribe", "handler", json!({ "topic": "news" }));
    for settings in [redis_at(&redis), redis_at(&other), json!({}), redis_at(&redis)] {
        worker.apply(settings.clone()).await.expect("applied");
        publish(&worker, "news", settings.clone()).await;
        assert_eq!(next(&mut heard).await.0, settings);
    }
    drop(other);
    let nobody = json!({ "adapter": { "name": "redis", "config": { "redis_url": "redis://127.0.0.1:1" } } });
    worker.apply(nobody).await.expect_err("nobody listens there");
    publish(&worker, "news", json!("still")).await;
    assert_eq!(next(&mut heard).await.0, json!("still"));
}

#[tokio::test]
async fn a_subscriber_that_hangs_costs_neither_publishers_nor_other_subscribers_anything() {
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    fake.offer("hangs", |_| std::future::pending());
    let mut answers = fake.note("answers");
    bind(&worker, "subscribe", "hangs", json!({ "topic": "news" }));
    bind(&worker, "subscribe", "answers", json!({ "topic": "news" }));
    let more_than_wait = engine_builtin::PER_BINDING.waiting + 2 * engine_builtin::PER_BINDING.in_flight;
    for number in 0..more_than_wait {
        publish(&worker, "news", json!(number)).await;
        assert_eq!(next(&mut answers).await.0, json!(number));
    }
}

#[tokio::test]
async fn topics_have_a_longest_name() {
    let fake = FakeEngine::new();
    let worker = create(&fake, Value::Null).await;
    let long = json!({ "topic": "t".repeat(engine_builtin::MAX_NAME_BYTES + 1), "data": 1 });
    assert_eq!(call(&worker, "publish", long).await.expect_err("too long").code, "deserialization_error");
}
