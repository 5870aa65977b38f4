//! Items at a real Redis, and adapters that are swapped.

use std::sync::Arc;

use engine_builtin::Builtin;
use serde_json::{Value, json};
use test_rig::TestRedis;

use crate::fake::{FakeEngine, PATIENCE, bind, next};
use crate::subscriber::Subscriber;
use crate::{in_memory, item, item_with, worker};

fn redis_at(redis: &TestRedis) -> Value {
    json!({ "adapter": { "name": "redis", "config": { "redis_url": redis.url() } } })
}

#[tokio::test]
async fn a_redis_keeps_items_as_a_file_does() {
    let redis = TestRedis::start();
    let fake = FakeEngine::new();
    let worker = worker(&fake, redis_at(&redis)).await;
    let set = worker.call("set", item_with("room*", "b", "data", json!({ "n": 1 }))).await;
    assert_eq!(set, Some(json!({ "old_value": null, "new_value": { "n": 1 } })));
    worker.set("hall", "c", json!("x")).await;
    let increment = json!([{ "type": "increment", "path": "n", "by": 2 }]);
    let updated = worker.call("update", item_with("room*", "b", "ops", increment)).await;
    assert_eq!(updated, Some(json!({ "old_value": { "n": 1 }, "new_value": { "n": 3 } })));
    assert_eq!(worker.call("get", item("room*", "b")).await, Some(json!({ "n": 3 })));
    assert_eq!(worker.call("get", item("room*", "z")).await, None);
    let group = json!({ "stream_name": "chat", "group_id": "room*" });
    assert_eq!(worker.call("list", group).await, Some(json!([{ "n": 3 }])));
    assert_eq!(worker.call("list_groups", json!({ "stream_name": "chat" })).await, Some(json!(["hall", "room*"])));
    assert_eq!(worker.call("list_groups", json!({ "stream_name": "cha?" })).await, Some(json!([])));
    assert_eq!(
        worker.call("list_all", json!({})).await,
        Some(json!({ "stream": [{ "id": "chat", "groups": ["hall", "room*"] }], "count": 1 }))
    );
    assert_eq!(worker.call("delete", item("hall", "c")).await, Some(json!({ "old_value": "x" })));
    assert_eq!(worker.call("delete", item("hall", "c")).await, Some(json!({ "old_value": null })));
}

#[tokio::test]
async fn no_stream_at_a_redis_is_taken_for_the_group_of_another() {
    let redis = TestRedis::start();
    let fake = FakeEngine::new();
    let worker = worker(&fake, redis_at(&redis)).await;
    let item = |stream: &str, group: &str| json!({ "stream_name": stream, "group_id": group, "item_id": "i", "data": 1, "ops": [] });
    worker.call("set", item("a", "b:c")).await;
    for (op, code) in [
        ("get", "STREAM_GET_ERROR"),
        ("set", "STREAM_SET_ERROR"),
        ("update", "STREAM_UPDATE_ERROR"),
        ("delete", "STREAM_DELETE_ERROR"),
        ("list", "STREAM_GET_GROUP_ERROR"),
        ("list_groups", "STREAM_LIST_GROUPS_ERROR"),
    ] {
        assert_eq!(worker.fail(op, item("a:b", "c")).await, code);
    }
    assert_eq!(worker.call("list_groups", item("a", "")).await, Some(json!(["b:c"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_at_one_redis_share_items_and_see_all_events_in_one_order() {
    let redis = TestRedis::start();
    let (here, there) = (FakeEngine::new(), FakeEngine::new());
    let one = Arc::new(worker(&here, redis_at(&redis)).await);
    let other = Arc::new(worker(&there, redis_at(&redis)).await);
    let mut heard = there.note("handler");
    bind(&other.builtin, "stream", "handler", json!({ "stream_name": "chat", "item_id": "hello" }));
    one.set("room", "hello", json!("you")).await;
    assert_eq!(next(&mut heard).await.0["event"], json!({ "type": "create", "data": "you" }));
    let (mut seen_here, mut seen_there) = (Subscriber::connect(&one).await, Subscriber::connect(&other).await);
    for subscriber in [&mut seen_here, &mut seen_there] {
        subscriber.join("s", "room", Some("n")).await;
        subscriber.hears("sync", json!(null)).await;
    }
    let ops = json!([{ "type": "increment", "path": "", "by": 1 }]);
    let writers = (0..100).map(|number| {
        let worker = Arc::clone(if number % 2 == 0 { &one } else { &other });
        let ops = ops.clone();
        tokio::spawn(async move { worker.call("update", item_with("room", "n", "ops", ops)).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    for subscriber in [&mut seen_here, &mut seen_there] {
        for number in 1..=100 {
            assert_eq!(subscriber.next().await.1, json!(number));
        }
    }
    one.call("send", json!({ "stream_name": "chat", "group_id": "room", "id": "n", "type": "hi", "data": 1 })).await;
    let event = json!({ "type": "event", "event": { "type": "hi", "data": 1 } });
    assert_eq!(seen_there.object().await["event"], event);
}

#[tokio::test]
async fn after_a_redis_was_away_every_subscriber_is_told_anew_what_is_there() {
    let mut redis = TestRedis::start();
    let fake = FakeEngine::new();
    let worker = worker(&fake, redis_at(&redis)).await;
    worker.set("room", "a", json!(1)).await;
    let mut subscriber = Subscriber::connect(&worker).await;
    subscriber.join("s", "room", None).await;
    subscriber.hears("sync", json!([1])).await;
    redis.kill();
    assert_eq!(worker.fail("set", item_with("room", "a", "data", json!(2))).await, "STREAM_SET_ERROR");
    assert_eq!(worker.fail("get", item("room", "a")).await, "STREAM_GET_ERROR");
    redis.restart();
    subscriber.hears("sync", json!([])).await;
    let writing = async {
        let data = item_with("room", "a", "data", json!(3));
        while crate::fake::call(&worker.builtin, "stream::set", data.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, writing).await.expect("written");
    subscriber.hears("create", json!(3)).await;
}

#[tokio::test]
async fn connections_stay_with_the_adapter_they_came_to() {
    let redis = TestRedis::start();
    let folder = tempfile::tempdir().expect("a folder");
    let fake = FakeEngine::new();
    let file = json!({ "adapter": { "name": "kv", "config": { "file_path": folder.path() } } });
    let worker = worker(&fake, file.clone()).await;
    let at = |mut settings: Value| {
        settings["port"] = json!(0);
        settings["host"] = json!("127.0.0.1");
        settings
    };
    let mut old = Subscriber::connect(&worker).await;
    old.join("s", "room", None).await;
    old.hears("sync", json!([])).await;
    worker.stream.apply(at(redis_at(&redis))).await.expect("applied");
    worker.set("room", "a", json!("redis")).await;
    let mut new = Subscriber::connect(&worker).await;
    new.join("s", "room", None).await;
    new.hears("sync", json!(["redis"])).await;
    let nobody = json!({ "adapter": { "name": "redis", "config": { "redis_url": "redis://127.0.0.1:1" } } });
    worker.stream.apply(at(nobody)).await.expect_err("nobody listens there");
    worker.stream.apply(at(file)).await.expect("the file is still open");
    worker.set("room", "a", json!("file")).await;
    old.hears("create", json!("file")).await;
    worker.stream.apply(at(in_memory())).await.expect("applied");
    assert_eq!(worker.call("get", item("room", "a")).await, None);
}
