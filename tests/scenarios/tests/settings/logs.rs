//! What becomes of log records: at once, or with exporters that are made anew.

use serde_json::json;
use test_rig::Rig;

use crate::telemetry::{Collector, Telemetry, observe};
use crate::{engine, until};

fn log(rig: &Rig, function: &str, message: &str) {
    let _ = rig.call(function, &json!({ "message": message }));
}

fn kept(rig: &Rig) -> Vec<String> {
    let logs = rig.call("engine::logs::list", &json!({}));
    let mut bodies: Vec<String> =
        logs["logs"].as_array().expect("logs").iter().map(|log| log["body"].as_str().expect("text").into()).collect();
    bodies.reverse();
    bodies
}

#[test]
fn logs_are_kept_thrown_away_and_shown_as_settings_say_from_then_on() {
    let rig = engine("");
    log(&rig, "engine::log::info", "one");
    log(&rig, "engine::log::info", "two");
    log(&rig, "engine::log::info", "three");
    assert_eq!(kept(&rig), ["one", "two", "three"]);
    observe(&rig, json!({"logs_max_count": 2}));
    assert_eq!(kept(&rig), ["two", "three"]);
    observe(&rig, json!({"logs_enabled": false}));
    log(&rig, "engine::log::info", "with logs off");
    observe(&rig, json!({"logs_sampling_ratio": 0}));
    log(&rig, "engine::log::info", "sampled out");
    observe(&rig, json!({"logs_console_output": false}));
    log(&rig, "engine::log::error", "not shown");
    observe(&rig, json!({"level": "error"}));
    log(&rig, "engine::log::warn", "below the level");
    log(&rig, "engine::log::error", "above the level");
    observe(&rig, json!({"level": "warn"}));
    log(&rig, "engine::log::warn", "at the level");
    assert_eq!(
        kept(&rig),
        ["two", "three", "not shown", "below the level", "above the level", "at the level"],
        "what is shown and what is kept are two things"
    );
    let shown = until(&rig, "the last is shown", || Some(rig.log()).filter(|log| log.contains("at the level")));
    assert!(shown.contains("three") && shown.contains("above the level"), "{shown}");
    for hidden in ["with logs off", "sampled out", "not shown", "below the level"] {
        assert!(!shown.contains(hidden), "{hidden}: {shown}");
    }
    observe(&rig, json!({"logs_retention_seconds": 1}));
    until(&rig, "old records go", || kept(&rig).is_empty().then_some(()));
}

#[test]
fn logs_are_sent_and_gathered_as_settings_say_from_then_on() {
    let collector = Collector::start();
    let rig = Rig::builder()
        .workers(&format!(
            "  - {{name: iii-observability, config: {{endpoint: \"{}\", prometheus: {{enabled: false}}}}}}\n",
            collector.endpoint()
        ))
        .start_engine_only();
    let mut telemetry = Telemetry::connect(&rig);
    let arrive = |wanted: &[&str]| {
        let all = collector.receiver.until(|received| received.log_bodies().len() >= wanted.len());
        let received = collector.runtime.block_on(all);
        assert_eq!(received.log_bodies(), wanted);
        received.log_batches
    };
    log(&rig, "engine::log::info", "kept only");
    // Nothing leaves before there are three.
    observe(&rig, json!({"logs_exporter": "otlp", "logs_batch_size": 3, "logs_flush_interval_ms": 3_600_000}));
    // An exporter that is replaced sends what it has; the next one is there when its first record arrives.
    for body in ["1", "2", "3"] {
        telemetry.log(body, 9);
    }
    assert_eq!(arrive(&["1", "2", "3"]), [3]);
    assert_eq!(kept(&rig), ["kept only"]);
    observe(&rig, json!({"logs_exporter": "both", "logs_batch_size": 10_000, "logs_flush_interval_ms": 100}));
    telemetry.log("4", 9);
    assert_eq!(arrive(&["1", "2", "3", "4"]), [3, 1]);
    assert_eq!(kept(&rig), ["kept only", "4"]);
    observe(&rig, json!({"logs_exporter": "memory"}));
    telemetry.log("5", 9);
    until(&rig, "the last is kept", || (kept(&rig) == ["kept only", "4", "5"]).then_some(()));
    assert_eq!(collector.receiver.received().log_bodies(), ["1", "2", "3", "4"]);
}
