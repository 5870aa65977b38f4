//! Redis that goes away and returns.

use scenarios::RawWorker;
use serde_json::{Value, json};
use test_rig::TestRedis;

use crate::{beside, worker};

fn workers(url: &str) -> String {
    let adapter = format!("adapter: {{ name: redis, config: {{ redis_url: '{url}' }} }}");
    format!(
        "  - name: iii-state\n    config: {{ {adapter} }}\n  - name: iii-pubsub\n    config: {{ {adapter} }}\n  \
         - name: iii-stream\n    config: {{ port: 0, {adapter} }}\n  - name: iii-cron\n    config: {{ {adapter} }}\n"
    )
}

/// Calls until it succeeds: how long it takes to connect anew is not told.
async fn until_done(worker: &mut RawWorker, function: &str, data: &Value) -> Value {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match worker.call(function, data).await.expect("connected") {
            Ok(answer) => return answer,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{function}: {error}"),
        }
    }
}

/// Publishes until it arrives.
async fn until_heard(publisher: &mut RawWorker, subscriber: &mut RawWorker) {
    for n in 0..200 {
        let message = json!({ "topic": "news", "data": { "n": n } });
        let _ = publisher.call("publish", &message).await.expect("connected");
        let listening = subscriber.hear_call();
        if let Ok(call) = tokio::time::timeout(std::time::Duration::from_millis(300), listening).await {
            let call = call.expect("connected");
            return subscriber.answer(&call, &Value::Null).await.expect("connected");
        }
    }
    panic!("nothing arrives");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_its_functions_answer_with_errors_and_with_it_they_work_again() {
    let mut redis = TestRedis::start();
    let (rig, bystander) = beside(&workers(&redis.url())).await;
    let (mut caller, mut subscriber) = (worker(&rig).await, worker(&rig).await);
    subscriber.register("news::heard").await.expect("connected");
    let trigger = json!({
        "type": "registertrigger", "id": "news", "trigger_type": "subscribe", "function_id": "news::heard",
        "config": { "topic": "news" },
    });
    subscriber.say(&trigger).await.expect("connected");
    subscriber.settled().await.expect("connected");
    let place = json!({ "scope": "s", "key": "k" });
    let item = json!({ "stream_name": "s", "group_id": "g", "item_id": "i" });
    let with = |place: &Value, name: &str, value: Value| {
        let mut request = place.clone();
        request[name] = value;
        request
    };
    for day in 0..2 {
        let (state, stream) = (with(&place, "value", json!(day)), with(&item, "data", json!({ "day": day })));
        until_done(&mut caller, "state::set", &state).await;
        until_done(&mut caller, "stream::set", &stream).await;
        assert_eq!(until_done(&mut caller, "state::get", &place).await, json!(day));
        assert_eq!(until_done(&mut caller, "stream::get", &item).await, json!({ "day": day }));
        until_heard(&mut caller, &mut subscriber).await;
        redis.kill();
        for (function, request) in
            [("state::set", &state), ("state::get", &place), ("stream::set", &stream), ("stream::get", &item)]
        {
            let answer = caller.call(function, request).await.expect("an answer, for all that");
            let error = answer.expect_err("there is no Redis");
            assert!(error["code"].as_str().is_some_and(|code| !code.is_empty()), "{function}: {error}");
        }
        redis.restart();
    }
    until_heard(&mut caller, &mut subscriber).await;
    bystander.noticed_nothing(&rig).await;
}
