//! What is read at the start only: stored at once, in use with the next start.

use serde_json::{Value, json};
use test_rig::Rig;

use crate::telemetry::{Collector, Telemetry, now_ns, observe, span};
use crate::{engine, restart, set, store, until};

#[test]
fn state_stays_where_it_is_until_the_next_start() {
    let mut rig = engine("  - {name: iii-state}\n");
    let write = |rig: &Rig, value: &str| {
        let _ = rig.call("state::set", &json!({ "scope": "s", "key": "k", "value": value }));
    };
    let read = |rig: &Rig| rig.call("state::get", &json!({ "scope": "s", "key": "k" }));
    write(&rig, "usual");
    let kv = json!({ "store_method": "file_based", "file_path": "./elsewhere", "save_interval_ms": 100 });
    set(&rig, "iii-state", &json!({ "adapter": { "name": "kv", "config": kv }, "save_interval_ms": 100 }));
    assert_eq!(read(&rig), "usual");
    assert!(!rig.project().join("elsewhere").exists());
    restart(&mut rig);
    assert_eq!(read(&rig), Value::Null);
    assert!(rig.project().join("elsewhere").exists());
    write(&rig, "elsewhere");
    set(&rig, "iii-state", &json!({ "adapter": { "name": "kv", "config": { "store_method": "in_memory" } } }));
    assert_eq!(read(&rig), "elsewhere");
    for _ in 0..2 {
        restart(&mut rig);
        assert_eq!(read(&rig), Value::Null, "nothing of memory is left");
        write(&rig, "in memory");
    }
}

/// Names of the metrics of workers that are kept.
fn metrics(rig: &Rig) -> Vec<String> {
    let listed = rig.call("engine::metrics::list", &json!({}));
    let mut names: Vec<String> = listed["sdk_metrics"]
        .as_array()
        .expect("metrics")
        .iter()
        .map(|metric| metric["name"].as_str().expect("a name").to_owned())
        .collect();
    names.sort();
    names
}

/// Sends three gauges and something that is known to be kept, and waits for that.
fn send_gauges(rig: &Rig, telemetry: &mut Telemetry) {
    for name in ["a", "b", "c"] {
        telemetry.gauge(name, 1.0, now_ns());
    }
    let mark = format!("mark {}", now_ns());
    telemetry.log(&mark, 9);
    until(rig, "all frames are read", || {
        let logs = rig.call("engine::logs::list", &json!({}));
        logs["logs"].as_array()?.iter().any(|log| log["body"] == mark.as_str()).then_some(())
    });
}

#[test]
fn telemetry_goes_elsewhere_and_looks_otherwise_with_the_next_start() {
    let collector = Collector::start();
    let mut rig = engine("");
    let changed = json!({
        "exporter": "otlp", "endpoint": collector.endpoint(), "metrics_exporter": "otlp", "metrics_max_count": 2,
        "service_name": "shop-engine", "service_version": "7.1", "service_namespace": "eu", "format": "json",
    });
    observe(&rig, changed);
    let mut telemetry = Telemetry::connect(&rig);
    telemetry.spans("shop", &[span(1, 1, None, "before")]);
    send_gauges(&rig, &mut telemetry);
    assert_eq!(metrics(&rig), ["a", "b", "c"]);
    assert_eq!(rig.call("engine::traces::list", &json!({}))["total"], 1);
    assert!(rig.log().contains("only read at start") && !rig.log().contains("\"level\":"), "{}", rig.log());

    restart(&mut rig);
    let error = rig.trigger("engine::traces::list", &json!({})).expect_err("spans are not kept here");
    assert_eq!(error["code"], "memory_exporter_not_enabled");
    let mut telemetry = Telemetry::connect(&rig);
    telemetry.spans("shop", &[span(1, 1, None, "after")]);
    send_gauges(&rig, &mut telemetry);
    assert_eq!(metrics(&rig), ["b", "c"]);
    // Has the engine's own counts written down.
    let _ = rig.call("engine::alerts::evaluate", &json!({}));
    let own = "iii.invocations.total";
    let received = collector.runtime.block_on(
        collector
            .receiver
            .until(|received| received.span_names().contains(&"after") && received.metric_names().contains(&own)),
    );
    assert_eq!(received.span_names(), ["after"]);
    let (from, _) = received.metrics.iter().find(|(_, metric)| metric.name == own).expect("the engine's count");
    for (key, value) in [("name", "shop-engine"), ("version", "7.1"), ("namespace", "eu")] {
        assert_eq!(test_rig::attribute(from, &format!("service.{key}")), Some(value));
    }
    let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == "INFO");
    until(&rig, "a log in JSON", || rig.log().lines().any(is_json).then_some(()));

    store(
        &rig,
        "iii-observability",
        &json!({
            "prometheus": { "enabled": false }, "exporter": "both", "endpoint": collector.endpoint(),
            "metrics_retention_seconds": 1,
        }),
    );
    restart(&mut rig);
    let mut telemetry = Telemetry::connect(&rig);
    telemetry.spans("shop", &[span(1, 1, None, "both")]);
    collector.runtime.block_on(collector.receiver.until(|received| received.span_names().contains(&"both")));
    assert_eq!(rig.call("engine::traces::list", &json!({}))["total"], 1);
    send_gauges(&rig, &mut telemetry);
    until(&rig, "old metrics go", || metrics(&rig).is_empty().then_some(()));

    observe(&rig, json!({ "metrics_enabled": false }));
    send_gauges(&rig, &mut telemetry);
    restart(&mut rig);
    let mut telemetry = Telemetry::connect(&rig);
    send_gauges(&rig, &mut telemetry);
    assert!(metrics(&rig).is_empty());
    let components = || rig.call("engine::health::check", &json!({}))["components"].clone();
    assert_eq!(
        (&components()["metrics"]["status"], &components()["otel"]["status"]),
        (&json!("disabled"), &json!("healthy"))
    );

    observe(&rig, json!({ "enabled": false }));
    assert_eq!(components()["otel"]["status"], "healthy");
    restart(&mut rig);
    let _ = rig.call("engine::log::info", &json!({ "message": "unheard" }));
    assert_eq!(rig.call("engine::logs::list", &json!({}))["total"], 0);
    assert_eq!(rig.call("engine::health::check", &json!({}))["components"]["otel"]["status"], "disabled");
}
