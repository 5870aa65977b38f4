//! The Redis adapter against a real Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_builtin::Builtin;
use serde_json::{Value, json};
use test_rig::TestRedis;

use crate::fake_engine::{PATIENCE, ask, bind, done, quiet_engine, state};
use crate::functions::answers_exactly;

fn settings(redis: &TestRedis) -> Value {
    json!({"adapter": {"name": "redis", "config": {"redis_url": redis.url()}}})
}

async fn state_on(redis: &TestRedis) -> Arc<dyn Builtin> {
    state(quiet_engine().0, settings(redis)).await
}

async fn command(redis: &TestRedis, words: &[&str]) -> Option<String> {
    let client = ::redis::Client::open(redis.url()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let (name, arguments) = words.split_first().expect("a command");
    ::redis::cmd(name).arg(arguments).query_async(&mut connection).await.expect("an answer")
}

#[tokio::test]
async fn redis_answers_as_the_contract_says() {
    let redis = TestRedis::start();
    answers_exactly(&state_on(&redis).await).await;
}

#[tokio::test]
async fn a_value_is_a_field_of_its_scopes_hash_for_everyone() {
    let redis = TestRedis::start();
    let (one, other) = (state_on(&redis).await, state_on(&redis).await);
    done(&one, "set", json!({"scope": "carts", "key": "c", "value": {"n": 1}})).await;
    assert_eq!(command(&redis, &["HGET", "state:carts", "c"]).await.as_deref(), Some(r#"{"n":1}"#));
    assert_eq!(done(&other, "get", json!({"scope": "carts", "key": "c"})).await, r#"{"n":1}"#);
    command(&redis, &["SET", "state:no hash", "1"]).await;
    assert_eq!(done(&other, "list_groups", json!({})).await, r#"{"groups":["carts"]}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_that_update_one_key_at_once_lose_nothing() {
    let redis = TestRedis::start();
    let engines = [state_on(&redis).await, state_on(&redis).await];
    let count = |number: usize| {
        let state = Arc::clone(&engines[number % 2]);
        tokio::spawn(async move {
            let ops = json!([{"type": "increment", "path": "n", "by": 1}]);
            done(&state, "update", json!({"scope": "s", "key": "k", "ops": ops})).await
        })
    };
    for counted in (0..400).map(count).collect::<Vec<_>>() {
        counted.await.expect("no panic");
    }
    assert_eq!(done(&engines[0], "get", json!({"scope": "s", "key": "k"})).await, r#"{"n":400}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_the_order_in_which_redis_was_written() {
    let redis = TestRedis::start();
    let (engine, mut called) = quiet_engine();
    let state = state(engine, settings(&redis)).await;
    bind(&state, "t", "on_change", json!({"scope": "s"}));
    done(&state, "set", json!({"scope": "s", "key": "k", "value": 0})).await;
    let count = |_| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let ops = json!([{"type": "increment", "path": "", "by": 1}]);
            done(&state, "update", json!({"scope": "s", "key": "k", "ops": ops})).await
        })
    };
    for counted in (0..100).map(count).collect::<Vec<_>>() {
        counted.await.expect("no panic");
    }
    for number in 0..=100 {
        assert_eq!(called.next().await.1["new_value"], number);
    }
}

#[tokio::test]
async fn a_redis_that_is_restarted_is_found_again() {
    let mut redis = TestRedis::start();
    let state = state_on(&redis).await;
    let set = json!({"scope": "s", "key": "k", "value": 1});
    done(&state, "set", set.clone()).await;
    redis.kill();
    let get = r#"{"scope":"s","key":"k"}"#;
    for (function, data, code) in [
        ("get", get, "GET_ERROR"),
        ("set", r#"{"scope":"s","key":"k","value":2}"#, "SET_ERROR"),
        ("delete", get, "DELETE_ERROR"),
        ("update", r#"{"scope":"s","key":"k","ops":[]}"#, "UPDATE_ERROR"),
        ("list", r#"{"scope":"s"}"#, "LIST_ERROR"),
        ("list_groups", "{}", "LIST_GROUPS_ERROR"),
    ] {
        assert_eq!(ask(&state, function, data).await, Err(code.into()));
    }
    redis.restart();
    let deadline = Instant::now() + PATIENCE;
    while ask(&state, "set", &set.to_string()).await.is_err() {
        assert!(Instant::now() < deadline, "not found again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&state, "get", get).await.as_deref(), Ok("1"));
}

#[tokio::test]
async fn what_others_have_stored_that_is_no_json_is_an_error_and_can_be_replaced() {
    let redis = TestRedis::start();
    let state = state_on(&redis).await;
    command(&redis, &["HSET", "state:s", "k", "no JSON"]).await;
    assert_eq!(ask(&state, "get", r#"{"scope":"s","key":"k"}"#).await, Err("GET_ERROR".into()));
    assert_eq!(ask(&state, "list", r#"{"scope":"s"}"#).await, Err("LIST_ERROR".into()));
    let update = r#"{"scope":"s","key":"k","ops":[{"type":"set","path":"","value":1}]}"#;
    assert_eq!(ask(&state, "update", update).await, Err("UPDATE_ERROR".into()));
    done(&state, "set", json!({"scope": "s", "key": "k", "value": 1})).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_told_at_the_start() {
    let mut redis = TestRedis::start();
    redis.kill();
    let error = builtin_state::create(quiet_engine().0, settings(&redis)).await.err().expect("no worker");
    assert!(error.to_string().contains("redis_url"), "{error}");
}
