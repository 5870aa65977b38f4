//! Settings at the start and while it runs.

use serde_json::json;

use crate::fake::{FakeEngine, bind, next};
use crate::{has, in_memory, kept_in, publish, worker};

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_refused_and_change_nothing() {
    let fake = FakeEngine::new();
    let bad = json!({ "queue_configs": { "q": { "concurrency": 0 } } });
    let error = builtin_queue::create(fake.engine(), bad.clone()).await.err().expect("refused").to_string();
    assert!(error.contains("queue_configs.q.concurrency") && error.contains("`0`"), "{error}");
    let worker = worker(&fake, in_memory()).await;
    worker.apply(bad).await.expect_err("refused");
    let nobody = json!({ "adapter": { "name": "rabbitmq", "config": { "amqp_url": "amqp://127.0.0.1:1" } } });
    worker.apply(nobody).await.expect_err("nobody is there");
    let mut seen = fake.note("f");
    bind(&worker, "durable:subscriber", "f", json!({ "topic": "t" }));
    publish(&worker, "t", json!(1)).await;
    next(&mut seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_adapter_takes_over_subscriptions_and_leaves_messages_behind() {
    let (fake, folder) = (FakeEngine::new(), tempfile::tempdir().expect("a folder"));
    let worker = worker(&fake, in_memory()).await;
    publish(&worker, "later", json!(1)).await;
    let mut seen = fake.note("f");
    bind(&worker, "durable:subscriber", "f", json!({ "topic": "t" }));
    worker.apply(kept_in(&folder)).await.expect("applied");
    has(&worker, "later", 0, 0).await;
    publish(&worker, "t", json!(2)).await;
    assert_eq!(next(&mut seen).await.0, json!(2));
    // The same place with other defaults is the same store.
    let mut settings = kept_in(&folder);
    settings["adapter"]["config"]["max_attempts"] = json!(1);
    worker.apply(settings).await.expect("applied");
    crate::refuse(&fake, "f");
    publish(&worker, "t", json!(3)).await;
    has(&worker, "t", 0, 1).await;
}

#[test]
fn the_schema_is_closed_and_names_every_adapter() {
    let schema = builtin_queue::schema();
    assert_eq!(schema["additionalProperties"], false);
    let adapters = schema["properties"]["adapter"]["oneOf"].as_array().expect("adapters");
    let names: Vec<_> = adapters.iter().map(|adapter| adapter["properties"]["name"]["const"].clone()).collect();
    assert_eq!(names, ["builtin", "redis", "rabbitmq", "bridge"]);
    assert!(adapters.iter().all(|adapter| adapter["properties"]["config"]["additionalProperties"] == false));
}
