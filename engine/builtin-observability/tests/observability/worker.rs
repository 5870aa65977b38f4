//! The worker as the engine uses it, with an engine that only remembers.

use std::io::{Read, Write};

use crate::fake::{FakeEngine, ask, ask_in, bind, frame, spans, started, trace_id, until};
use engine_builtin::{Builtin, BuiltinError, Stats, Trace};
use serde_json::{Value, json};

const PARENT: &str = "00-3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f-9a8b7c6d5e4f3a2b-03";

#[tokio::test]
async fn a_log_call_is_kept_with_the_trace_of_its_caller() {
    let (_, worker) = started(json!({"logs_console_output": false})).await;
    let trace = Trace { traceparent: Some(PARENT.into()), baggage: None };
    let request = json!({"message": "\u{1b}[31mhello\u{1b}[0m", "data": {"n": 1, "deep": {"a": [true]}}});
    assert_eq!(ask_in(&worker, "engine::log::warn", request, trace).expect("logged"), Value::Null);
    ask(&worker, "engine::log::info", json!({"message": "b", "trace_id": "t", "service_name": "shop", "data": 5}))
        .expect("logged");
    let answer = ask(&worker, "engine::logs::list", json!({})).expect("logs");
    assert_eq!((&answer["total"], &answer["logs"][0]["service_name"]), (&json!(2), &json!("shop")));
    assert_eq!((&answer["logs"][0]["trace_id"], &answer["logs"][0]["attributes"]), (&json!("t"), &json!({"data": 5})));
    let first = &answer["logs"][1];
    assert_eq!(
        (&first["body"], &first["severity_number"], &first["severity_text"]),
        (&json!("hello"), &json!(13), &json!("WARN"))
    );
    assert_eq!(
        (&first["trace_id"], &first["span_id"]),
        (&json!("3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f"), &json!("9a8b7c6d5e4f3a2b"))
    );
    assert_eq!(
        (&first["service_name"], &first["attributes"]),
        (&json!("iii"), &json!({"n": 1, "deep": {"a": [true]}}))
    );
    assert_eq!(first["resource"]["service.version"], "unknown");
    let code = |answer: Result<Value, engine_builtin::ErrorBody>| answer.expect_err("an error").code;
    assert_eq!(code(ask(&worker, "engine::log::info", json!({}))), "deserialization_error");
    assert_eq!(code(ask(&worker, "engine::logs::list", json!({"start_time": u64::MAX}))), "time_value_overflow");
    ask(&worker, "engine::logs::clear", json!({})).expect("cleared");
    assert_eq!(ask(&worker, "engine::logs::list", Value::Null).expect("logs")["total"], 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_handler_of_logs_that_hangs_costs_the_others_no_log() {
    let (engine, worker) = started(json!({"logs_console_output": false})).await;
    bind(&worker, "log", "hangs", Value::Null).expect("bound");
    bind(&worker, "log", "answers", Value::Null).expect("bound");
    for number in 1..=1000 {
        ask(&worker, "engine::log::info", json!({"message": "m"})).expect("logged");
        engine.called("answers", |calls| calls.len() == number).await;
    }
    assert_eq!(engine.calls("hangs").len(), engine_builtin::PER_BINDING.in_flight);
    worker.stop().await;
}

#[tokio::test]
async fn log_triggers_fire_for_exactly_their_level_and_not_for_what_their_handlers_log() {
    let (engine, worker) = started(json!({})).await;
    bind(&worker, "log", "on::warn", json!({"level": "warn"})).expect("bound");
    bind(&worker, "log", "on::all", Value::Null).expect("bound");
    assert_eq!(bind(&worker, "log", "on::x", json!({"level": "loud"})), Err("trigger_registration_failed".into()));
    for level in ["error", "warn", "info"] {
        ask(&worker, &format!("engine::log::{level}"), json!({"message": level})).expect("logged");
    }
    engine.called("on::all", |calls| calls.len() == 3).await;
    let [(payload, trace)] = &engine.called("on::warn", |calls| !calls.is_empty()).await[..] else {
        panic!("one call")
    };
    let keys: Vec<&str> = payload.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "timestamp_unix_nano",
            "observed_timestamp_unix_nano",
            "severity_number",
            "severity_text",
            "body",
            "attributes",
            "trace_id",
            "span_id",
            "resource",
            "service_name",
            "instrumentation_scope_name",
            "instrumentation_scope_version",
        ]
    );
    assert!(payload["trace_id"].is_null());
    ask_in(&worker, "engine::log::warn", json!({"message": "from the handler"}), trace.clone()).expect("logged");
    worker.unbind("log", "log-on::warn");
    ask(&worker, "engine::log::warn", json!({"message": "later"})).expect("logged");
    let told = engine.called("on::all", |calls| calls.len() > 3).await;
    assert_eq!((told.len(), &told[3].0["body"], engine.calls("on::warn").len()), (4, &json!("later"), 1));
    worker.stop().await;
}

#[tokio::test]
async fn spans_of_sdks_are_listed_shown_as_trees_and_told_of() {
    let (engine, worker) = started(json!({"collapse_spans": [{"name": "hop"}]})).await;
    bind(&worker, "trace", "on::trace", json!({"service_name": "SHOP"})).expect("bound");
    bind(&worker, "trace", "on::error", json!({"status": "error"})).expect("bound");
    let list = [(2, 3, 2, "work"), (2, 2, 1, "hop"), (2, 1, 0, "root"), (2, 4, 1, "trigger x"), (1, 5, 0, "other")];
    worker.ingest(&frame("OTLP", &spans(&list))).expect("taken");
    let all = json!({"search_all_spans": true, "sort_order": "asc"});
    let answer = until(&worker, "engine::traces::list", all, |answer| answer["total"] == 5).await;
    assert_eq!(
        (&answer["offset"], &answer["limit"], &answer["spans"][0]["name"]),
        (&json!(0), &json!(100), &json!("root"))
    );
    let tree = ask(&worker, "engine::traces::tree", json!({"trace_id": trace_id(2)})).expect("a tree");
    assert_eq!(tree["roots"][0]["children"][0]["name"], "work");
    assert_eq!(tree["roots"][0]["children"][0]["parent_span_id"], format!("{:016x}", 1));
    assert_eq!(tree["roots"].as_array().map(Vec::len), Some(1));
    assert_eq!(ask(&worker, "engine::traces::tree", json!({"trace_id": "x"})).expect("a tree"), json!({"roots": []}));

    let told = engine.called("on::trace", |calls| !calls.is_empty()).await;
    assert_eq!(told[0].0, json!({"trace_ids": [trace_id(1), trace_id(2)]}));
    let shown = engine.called("stream::send", |calls| calls.len() == 3).await;
    let rows = &shown[0].0;
    assert_eq!(
        (&rows["stream_name"], &rows["group_id"], &rows["type"]),
        (&json!("iii:devtools:trace-rows"), &json!("all"), &json!("spans"))
    );
    assert_eq!(rows["data"]["spans"].as_array().map(Vec::len), Some(2));
    let of_trace = shown.iter().find(|(event, _)| event["group_id"] == trace_id(2)).expect("the trace's event");
    assert_eq!(of_trace.0["stream_name"], "iii:devtools:trace-spans");
    assert_eq!(of_trace.0["data"]["spans"][0]["parent_span_id"], format!("{:016x}", 1));

    // What the handler does, in the trace it was called in, tells nobody; the next span of another does.
    let own = told[0].1.traceparent.clone().expect("a trace").split('-').nth(1).expect("an id").to_owned();
    let mut request = spans(&[(9, 7, 0, "handler")]);
    request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] = own.into();
    worker.ingest(&frame("OTLP", &request)).expect("taken");
    worker.ingest(&frame("OTLP", &spans(&[(3, 8, 0, "next")]))).expect("taken");
    let told = engine.called("on::trace", |calls| calls.len() > 1).await;
    assert_eq!(told[1].0, json!({"trace_ids": [trace_id(3)]}));
    assert!(engine.calls("on::error").is_empty());
    ask(&worker, "engine::traces::clear", json!({})).expect("cleared");
    assert_eq!(ask(&worker, "engine::traces::list", json!({})).expect("spans")["total"], 0);
    worker.stop().await;
}

fn gauges(worker_id: &str, now_ns: u128) -> Value {
    let gauge = |name: &str, value: f64| {
        json!({"name": name, "gauge": {"dataPoints": [
            {"asDouble": value, "timeUnixNano": now_ns.to_string(), "attributes": [{"key": "worker.id", "value": {"stringValue": worker_id}}]},
        ]}})
    };
    json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [
        gauge("iii.worker.memory.rss", 4096.0), gauge("iii.worker.cpu.percent", 1.5), gauge("shop.carts", 7.0),
    ]}]}]})
}

fn now_ns() -> u128 {
    std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos()
}

#[tokio::test]
async fn metrics_of_sdks_and_engine_are_listed_rolled_up_and_watched() {
    let alerts = json!([
        {"cooldown_seconds": 0, "name": "carts", "metric": "shop.carts", "threshold": 5, "operator": ">", "action": {"type": "function", "path": "ops::page"}},
        {"name": "errors", "metric": "iii.invocations.error", "threshold": 100},
    ]);
    let (engine, worker) = started(json!({"alerts": alerts})).await;
    *engine.stats.lock().expect("a lock") =
        Stats { calls: 9, succeeded: 8, failed: 1, by_function: vec![("a::b".into(), 9)], ..Stats::default() };
    assert_eq!(worker.latest_metrics("w1"), None);
    worker.ingest(&frame("MTRC", &gauges("w1", now_ns()))).expect("taken");
    let request = json!({"metric_name": "shop.carts", "aggregate_interval": 60});
    let wanted = |answer: &Value| answer["sdk_metrics"].as_array().is_some_and(|metrics| metrics.len() == 1);
    let answer = until(&worker, "engine::metrics::list", request, wanted).await;
    assert_eq!(
        answer["engine_metrics"]["invocations"],
        json!({"total": 9, "success": 8, "error": 1, "deferred": 0, "by_function": {"a::b": 9}})
    );
    assert_eq!(answer["sdk_metrics"][0]["data_points"][0]["value"], 7.0);
    assert_eq!(
        (&answer["aggregated_metrics"][0]["avg"], &answer["query"]["metric_name"]),
        (&json!(7.0), &json!("shop.carts"))
    );
    let latest = worker.latest_metrics("w1").expect("gauges");
    assert_eq!((&latest["memory_rss"], &latest["cpu_percent"]), (&json!(4096), &json!(1.5)));

    let evaluated = ask(&worker, "engine::alerts::evaluate", json!({})).expect("evaluated");
    assert_eq!((&evaluated["evaluated"], &evaluated["triggered_alerts"][0]["name"]), (&json!(2), &json!("carts")));
    let paged = engine.called("ops::page", |calls| !calls.is_empty()).await;
    assert_eq!((&paged[0].0["value"], &paged[0].0["operator"]), (&json!(7.0), &json!("greaterthan")));
    let list = ask(&worker, "engine::alerts::list", json!({})).expect("alerts");
    assert_eq!((&list["firing_count"], &list["alerts"][1]["firing"]), (&json!(1), &json!(false)));

    for level in 0..3 {
        let rollups = ask(&worker, "engine::rollups::list", json!({"level": level})).expect("rollups");
        let names: Vec<&str> = rollups["rollups"]
            .as_array()
            .expect("rollups")
            .iter()
            .filter_map(|one| one["metric_name"].as_str())
            .collect();
        assert!(names.contains(&"shop.carts") && names.contains(&"iii.invocations.total"), "{names:?}");
    }
    let error = ask(&worker, "engine::rollups::list", json!({"level": 3})).expect_err("an error");
    assert_eq!(error.code, "deserialization_error");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_may_ask_for_gauges_and_bind_triggers_whatever_it_is_asked_for() {
    let (engine, worker) = started(json!({})).await;
    worker.ingest(&frame("MTRC", &gauges("w1", now_ns()))).expect("taken");
    let wanted = |answer: &Value| answer["sdk_metrics"].as_array().is_some_and(|metrics| metrics.len() == 3);
    until(&worker, "engine::metrics::list", json!({}), wanted).await;
    engine.asked_back.set(std::sync::Arc::downgrade(&worker)).expect("set once");
    bind(&worker, "log", "on::log", Value::Null).expect("bound");
    bind(&worker, "trace", "on::trace", Value::Null).expect("bound");
    for function in worker.functions() {
        let request = json!({"message": "m", "key": "k", "value": "v", "attribute": "a", "trace_id": "t"});
        ask(&worker, &function.id, request).unwrap_or_else(|error| panic!("{}: {error}", function.id));
    }
    worker.ingest(&frame("OTLP", &spans(&[(1, 1, 0, "root")]))).expect("taken");
    for function in ["on::log", "on::trace", "stream::send"] {
        engine.called(function, |calls| !calls.is_empty()).await;
    }
    let address = worker.prometheus_address().expect("an endpoint");
    let page = tokio::task::spawn_blocking(move || page(address)).await.expect("a page");
    assert!(page.contains("iii_invocations_total"), "{page}");
    worker.stop().await;
    let asked = engine.asked.lock().expect("a lock").clone();
    for method in ["stats", "version", "knows", "call"] {
        assert!(asked.iter().any(|(by, _)| *by == method), "{method} was not asked for: {asked:?}");
    }
    assert!(asked.iter().all(|(_, answered)| *answered), "{asked:?}");
}

fn page(address: std::net::SocketAddr) -> String {
    let mut socket = std::net::TcpStream::connect(address).expect("a connection");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").expect("a request");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("a page");
    page
}

#[tokio::test]
async fn baggage_of_the_call_is_read_and_health_and_rules_are_told() {
    let (_, worker) = started(json!({"sampling": {"default": 0.5, "rules": [{"operation": "a*", "rate": 1}]}})).await;
    let trace = Trace { traceparent: None, baggage: Some("user=ada%20l,n=1".into()) };
    let read = |function, data| ask_in(&worker, function, data, trace.clone()).expect("baggage");
    assert_eq!(read("engine::baggage::get", json!({"key": "user"})), json!({"value": "ada l"}));
    assert_eq!(read("engine::baggage::get", json!({"key": "no"})), json!({"value": null}));
    assert_eq!(read("engine::baggage::get_all", Value::Null), json!({"baggage": {"user": "ada l", "n": "1"}}));
    assert_eq!(read("engine::baggage::set", json!({"key": "a", "value": "b"}))["success"], true);
    let rules = ask(&worker, "engine::sampling::rules", json!({})).expect("rules");
    assert_eq!(
        rules["traces"],
        json!({
            "default_ratio": 0.5, "rules": [{"operation": "a*", "service": null, "rate": 1.0}], "parent_based": false,
        })
    );
    let health = ask(&worker, "engine::health::check", json!({})).expect("health");
    assert_eq!((&health["status"], &health["version"]), (&json!("healthy"), &json!("1.2.3")));
    assert_eq!(health["components"]["spans"], json!({"status": "healthy", "details": {"stored": 0}}));
    worker.stop().await;
}

#[tokio::test]
async fn without_a_store_traces_cannot_be_asked_for_and_off_is_off() {
    let (_, worker) = started(json!({"exporter": "otlp", "endpoint": "http://127.0.0.1:1"})).await;
    for function in
        ["engine::traces::list", "engine::traces::tree", "engine::traces::group_by", "engine::traces::clear"]
    {
        let request = json!({"trace_id": trace_id(1), "attribute": "a"});
        assert_eq!(ask(&worker, function, request).expect_err("an error").code, "memory_exporter_not_enabled");
    }
    worker.stop().await;
    let (engine, worker) = started(json!({"enabled": false})).await;
    bind(&worker, "log", "on::log", Value::Null).expect("bound");
    ask(&worker, "engine::log::info", json!({"message": "m"})).expect("taken");
    assert_eq!(ask(&worker, "engine::logs::list", json!({})).expect("logs")["total"], 0);
    assert!(engine.calls("on::log").is_empty() && worker.prometheus_address().is_none());
    let health = ask(&worker, "engine::health::check", json!({})).expect("health");
    assert_eq!(health["components"]["otel"]["status"], "disabled");
    worker.stop().await;
}

#[tokio::test]
async fn new_settings_are_used_at_once_where_they_can_be_and_bad_ones_change_nothing() {
    let (_, worker) = started(json!({})).await;
    let mut level = worker.level();
    for number in 0..5 {
        ask(&worker, "engine::log::info", json!({"message": number.to_string()})).expect("logged");
    }
    let address = worker.prometheus_address();
    let changed = json!({"logs_max_count": 2, "level": "debug", "exporter": "otlp", "prometheus": {"port": 0}});
    worker.apply(changed).await.expect("applied");
    assert!(level.has_changed().expect("a sender"));
    assert_eq!(*level.borrow_and_update(), "debug");
    assert_eq!(ask(&worker, "engine::logs::list", json!({})).expect("logs")["total"], 2);
    assert_eq!(worker.prometheus_address(), address);
    ask(&worker, "engine::traces::list", json!({})).expect("the exporter is only read at start");
    let error = worker.apply(json!({"logs_max_count": 0})).await.expect_err("an error");
    assert!(matches!(&error, BuiltinError::Settings(text) if text.contains("`logs_max_count` is 0")), "{error}");
    assert_eq!(*level.borrow_and_update(), "debug");
    let off = json!({"logs_sampling_ratio": 0, "prometheus": {"enabled": false}});
    worker.apply(off).await.expect("applied");
    ask(&worker, "engine::log::info", json!({"message": "sampled out"})).expect("taken");
    assert_eq!(ask(&worker, "engine::logs::list", json!({})).expect("logs")["total"], 2);
    assert_eq!(worker.prometheus_address(), None);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_move_stays_and_moves_with_the_next_settings() {
    let (_, worker) = started(json!({})).await;
    let before = worker.prometheus_address().expect("an endpoint");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let wanted = taken.local_addr().expect("an address");
    let settings = || json!({"prometheus": {"port": wanted.port()}});
    worker.apply(settings()).await.expect("applied all the same");
    assert_eq!(worker.prometheus_address(), Some(before));
    drop(taken);
    worker.apply(settings()).await.expect("applied");
    assert_eq!(worker.prometheus_address(), Some(wanted));
    let page = tokio::task::spawn_blocking(move || page(wanted)).await.expect("a page");
    assert!(page.contains("iii_invocations_total"), "{page}");
    worker.stop().await;
}

#[tokio::test]
async fn one_port_of_the_endpoint_is_opened_to_other_hosts_and_closed_again() {
    let (_, worker) = started(json!({})).await;
    let before = worker.prometheus_address().expect("an endpoint");
    // Documentation's address is never this machine's.
    for (host, live) in [("0.0.0.0", "0.0.0.0"), ("203.0.113.1", "0.0.0.0"), ("127.0.0.1", "127.0.0.1")] {
        worker.apply(json!({"prometheus": {"host": host, "port": before.port()}})).await.expect("applied");
        let address = worker.prometheus_address().expect("an endpoint");
        assert_eq!((address.ip().to_string(), address.port()), (live.to_owned(), before.port()));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_no_failure_and_every_function_answers() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let engine = std::sync::Arc::new(FakeEngine::default());
    let worker = builtin_observability::create(engine, json!({"prometheus": {"port": port}})).await.expect("settings");
    worker.start().await.expect("a start all the same");
    assert_eq!(worker.prometheus_address(), None);
    for function in worker.functions() {
        let request = json!({"message": "m", "key": "k", "value": "v", "attribute": "a", "trace_id": "t"});
        ask(&worker, &function.id, request).unwrap_or_else(|error| panic!("{}: {error}", function.id));
    }
    worker.stop().await;
}
