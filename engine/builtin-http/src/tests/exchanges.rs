//! What a request is answered with, step by step.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use engine_builtin::{Builtin, ErrorBody, Item};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::fake::{FakeEngine, answer, bind, listening, read, request, send, try_bind, with_body};
use crate::exchange::Shared;
use crate::payload::MAX_JSON_BYTES;
use crate::route::Route;
use crate::route::tests::binding;
use crate::settings::HttpSettings;

#[tokio::test]
async fn a_request_reaches_its_handler_and_the_value_comes_back() {
    let engine = FakeEngine::new();
    engine.offer("user", |asked| async move {
        let body =
            json!({"asked": asked.payload, "traceparent": asked.trace.traceparent, "baggage": asked.trace.baggage});
        answer(json!({"status_code": 201, "headers": {"x-a": "1"}, "body": body}))
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "user", json!({"api_path": "users/:id", "http_method": "POST"}));
    let mut asking = with_body("POST", "/users/42?full=1", "application/json", r#"{"name":"Ada"}"#);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    asking.headers_mut().insert("traceparent", traceparent.parse().expect("a value"));
    asking.headers_mut().insert("baggage", "k=v".parse().expect("a value"));
    let seen = send(address, asking).await;
    assert_eq!((seen.status, &seen.headers["x-a"]), (201, &"1".parse().expect("a value")));
    let body = seen.json();
    assert_eq!((&body["traceparent"], &body["baggage"]), (&json!(traceparent), &json!("k=v")));
    let asked = &body["asked"];
    assert_eq!(asked["path_params"], json!({"id": "42"}));
    assert_eq!(asked["query_params"], json!({"full": "1"}));
    assert_eq!(asked["body"], json!({"name": "Ada"}));
    assert_eq!(asked["trigger"], json!({"type": "http", "path": "users/:id", "method": "POST"}));
    assert_eq!(asked["request_body"]["direction"], "read");
    assert_eq!(asked["response"]["direction"], "write");
    assert_eq!(engine.offered_channels(), 0, "channels that nobody attached are taken back");
}

#[tokio::test]
async fn a_json_body_is_in_its_channel_too() {
    let engine = FakeEngine::new();
    engine.offer("raw", |asked| async move {
        let mut channel = asked.request_body();
        let mut text = String::new();
        while let Some(Item::Binary(bytes)) = channel.next().await {
            text.push_str(std::str::from_utf8(&bytes).expect("text"));
        }
        answer(json!({"body": {"raw": text, "whole": channel.is_whole(), "parsed": asked.payload["body"]}}))
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "raw", json!({"api_path": "raw", "http_method": "PUT"}));
    for (text, parsed) in [(r#" {"a": 1} "#, json!({"a": 1})), ("{broken", Value::Null), ("", Value::Null)] {
        let seen = send(address, with_body("PUT", "/raw", "application/json", text)).await;
        assert_eq!(seen.json(), json!({"raw": text, "whole": true, "parsed": parsed}));
    }
}

/// Writes down who is called, in order.
fn chorus(engine: &Arc<FakeEngine>, answers: &[(&'static str, Value)]) -> Arc<Mutex<Vec<&'static str>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    for (id, value) in answers.iter().cloned() {
        let heard = Arc::clone(&heard);
        engine.offer(id, move |_| {
            heard.lock().expect("a lock").push(id);
            std::future::ready(answer(value.clone()))
        });
    }
    heard
}

#[tokio::test]
async fn everyone_is_asked_in_order() {
    let engine = FakeEngine::new();
    let go_on = json!({"action": "continue"});
    let heard = chorus(
        &engine,
        &[
            ("second", go_on.clone()),
            ("first", json!("whatever")),
            ("condition", json!({"false": false})),
            ("route1", json!(null)),
            ("route2", json!({"action": "respond?"})),
            ("handler", json!({"body": "done"})),
        ],
    );
    let middleware = json!([{"function_id": "second", "priority": 2}, {"function_id": "first", "phase": "preHandler", "priority": 1}]);
    let (http, address) = listening(&engine, json!({"middleware": middleware})).await;
    let route = json!({"api_path": "x", "condition_function_id": "condition",
        "middleware_function_ids": ["route1", "route2"]});
    bind(&http, "handler", route);
    assert_eq!(send(address, request("GET", "/x")).await.json(), json!("done"));
    assert_eq!(*heard.lock().expect("a lock"), ["first", "second", "condition", "route1", "route2", "handler"]);
}

#[tokio::test]
async fn a_middleware_that_answers_is_the_last_to_be_asked() {
    let engine = FakeEngine::new();
    let respond =
        json!({"action": "respond", "response": {"status_code": 401, "body": {"no": 1}, "headers": {"x": "y"}}});
    let heard = chorus(&engine, &[("guard", respond), ("handler", json!({})), ("condition", json!(true))]);
    let (http, address) = listening(&engine, json!({"middleware": [{"function_id": "guard"}]})).await;
    bind(&http, "handler", json!({"api_path": "x", "condition_function_id": "condition"}));
    let seen = send(address, request("GET", "/x")).await;
    assert_eq!((seen.status, seen.json()), (401, json!({"no": 1})));
    assert!(seen.headers.contains_key("x"));
    assert_eq!(*heard.lock().expect("a lock"), ["guard"]);
    assert_eq!(send(address, request("GET", "/nobody")).await.status, 404);
}

#[tokio::test]
async fn a_condition_that_says_no_and_whoever_fails_are_told_in_the_envelope() {
    let engine = FakeEngine::new();
    engine.offer_value("no", json!(false));
    engine.offer("fails", |_| std::future::ready(Err(ErrorBody::new("broken", "it broke"))));
    engine.offer_value("fine", json!({}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "fine", json!({"api_path": "skipped", "condition_function_id": "no"}));
    let seen = send(address, request("GET", "/skipped")).await;
    assert_eq!((seen.status, &seen.json()["skipped"]), (422, &json!(true)));
    assert_eq!(seen.json()["error"]["code"], "CONDITION_NOT_MET");
    for config in [
        json!({"api_path": "x", "condition_function_id": "fails"}),
        json!({"api_path": "x", "middleware_function_ids": ["fails"]}),
    ] {
        bind(&http, "fine", config);
        let seen = send(address, request("GET", "/x")).await;
        assert_eq!((seen.status, &seen.json()["error"]["code"]), (500, &json!("broken")));
    }
    bind(&http, "fails", json!({"api_path": "y"}));
    let error = send(address, request("GET", "/y")).await.json()["error"].clone();
    assert_eq!((&error["code"], &error["message"]), (&json!("broken"), &json!("it broke")));
    assert!(error["error_id"].is_string());
    bind(&http, "missing", json!({"api_path": "z"}));
    let seen = send(address, request("GET", "/z")).await;
    assert_eq!((seen.status, &seen.json()["error"]["code"]), (500, &json!("function_not_found")));
}

#[tokio::test]
async fn methods_that_nobody_bound_are_answered_as_a_browser_or_a_probe_expects() {
    let engine = FakeEngine::new();
    engine.offer_value("get", json!({"body": "hello", "headers": {"content-type": "text/plain"}}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "get", json!({"api_path": "x"}));
    let seen = send(address, request("HEAD", "/x")).await;
    assert_eq!((seen.status, &seen.headers["content-length"], seen.body.len()), (200, &"5".parse().expect("5"), 0));
    let seen = send(address, request("POST", "/x")).await;
    assert_eq!(
        (seen.status, &seen.headers["allow"], seen.body.len()),
        (405, &"GET, HEAD, OPTIONS".parse().expect("text"), 0)
    );
    let seen = send(address, request("OPTIONS", "/x")).await;
    assert_eq!((seen.status, &seen.headers["allow"]), (200, &"GET, HEAD, OPTIONS".parse().expect("text")));
    let seen = send(address, request("GET", "/y")).await;
    assert_eq!((seen.status, &seen.json()["error"]["code"]), (404, &json!("NOT_FOUND")));
    assert_eq!(seen.headers["access-control-allow-origin"], "*");
    let mut preflight = request("OPTIONS", "/nowhere");
    preflight.headers_mut().insert("origin", "https://a".parse().expect("a value"));
    preflight.headers_mut().insert("access-control-request-method", "PUT".parse().expect("a value"));
    let seen = send(address, preflight).await;
    assert_eq!((seen.status, &seen.headers["access-control-allow-methods"]), (200, &"*".parse().expect("a value")));
}

#[tokio::test]
async fn a_json_body_over_the_limit_is_refused_and_the_client_can_read_that() {
    let engine = FakeEngine::new();
    engine.offer_value("post", json!({}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "post", json!({"api_path": "x", "http_method": "POST"}));
    let large = vec![b' '; 2 * MAX_JSON_BYTES];
    let seen = send(address, with_body("POST", "/x", "application/json", large)).await;
    assert_eq!((seen.status, &seen.json()["error"]["code"]), (413, &json!("PAYLOAD_TOO_LARGE")));
}

#[tokio::test]
async fn a_conflict_is_refused_and_a_newer_binding_takes_over() {
    let engine = FakeEngine::new();
    engine.offer_value("old", json!({"body": "old"}));
    engine.offer_value("new", json!({"body": "new"}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "old", json!({"api_path": "users/:id"}));
    let error = try_bind(&http, "other", json!({"api_path": "users/:uid"})).expect_err("a conflict");
    assert!(error.message.contains("users/:id") && error.message.contains("users/:uid"), "{error}");
    http.unbind("http", "other");
    assert_eq!(send(address, request("GET", "/users/1")).await.json(), json!("old"));
    bind(&http, "new", json!({"api_path": "/users/:id"}));
    http.unbind("http", "old");
    assert_eq!(send(address, request("GET", "/users/1")).await.json(), json!("new"));
    http.unbind("http", "new");
    assert_eq!(send(address, request("GET", "/users/1")).await.status, 404);
}

/// What all requests share, with one route and no listener: the clock can be moved.
fn shared(engine: &Arc<FakeEngine>, settings: Value, route: Value) -> Shared {
    let shared = Shared::new(Arc::clone(engine) as _, &HttpSettings::new(settings).expect("settings"));
    let route = Route::new(binding("f", route)).expect("a route");
    shared.routes.write().expect("a lock").insert(route).expect("no conflict");
    shared
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_says_nothing_is_given_up_after_the_timeout() {
    let engine = FakeEngine::new();
    engine.offer("f::run", |_| std::future::ready(Ok(None)));
    let shared = shared(&engine, json!({}), json!({"api_path": "x"}));
    let begun = tokio::time::Instant::now();
    let seen = read(shared.respond(request("GET", "/x")).await).await;
    assert_eq!((seen.status, seen.body), (504, Bytes::new()));
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_middleware_that_is_too_slow_is_named() {
    let engine = FakeEngine::new();
    engine.offer("slow", |_| std::future::pending());
    for settings in
        [json!({"default_timeout": 50}), json!({"default_timeout": 50, "middleware": [{"function_id": "slow"}]})]
    {
        let shared = shared(&engine, settings, json!({"api_path": "x", "middleware_function_ids": ["slow"]}));
        let seen = read(shared.respond(request("GET", "/x")).await).await;
        assert_eq!((seen.status, &seen.json()["error"]["code"]), (504, &json!("MIDDLEWARE_TIMEOUT")));
        assert!(seen.json()["error"]["message"].as_str().is_some_and(|text| text.contains("`slow`")));
    }
    let condition = json!({"api_path": "x", "condition_function_id": "slow"});
    let seen = read(shared(&engine, json!({}), condition).respond(request("GET", "/x")).await).await;
    assert_eq!((seen.status, seen.body), (504, Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_at_once_are_worked_on_within_the_limit() {
    let engine = FakeEngine::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&now), Arc::clone(&most));
    engine.offer("f::run", move |_| {
        let (now, most) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            answer(json!({}))
        }
    });
    let shared = shared(&engine, json!({"concurrency_request_limit": 50}), json!({"api_path": "x"}));
    let answers = join_all((0..1000).map(|_| shared.respond(request("GET", "/x")))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert_eq!((most.load(Ordering::SeqCst), now.load(Ordering::SeqCst)), (50, 0));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_counts_as_time() {
    let engine = FakeEngine::new();
    engine.offer("f::run", |_| std::future::pending());
    let settings = json!({"concurrency_request_limit": 1, "default_timeout": 100});
    let shared = shared(&engine, settings, json!({"api_path": "x"}));
    let (one, two) = tokio::join!(shared.respond(request("GET", "/x")), shared.respond(request("GET", "/x")));
    assert_eq!((one.status().as_u16(), two.status().as_u16()), (504, 504));
}
