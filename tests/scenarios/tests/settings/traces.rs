//! Which spans are kept, and how a trace is shown: at once.

use serde_json::{Value, json};
use test_rig::Rig;

use crate::telemetry::{Telemetry, observe, span, trace_id};
use crate::{engine, until};

/// Of the spans that were sent, the names of those that are kept, once all were looked at.
fn kept(rig: &Rig, telemetry: &mut Telemetry) -> Vec<String> {
    // Logs are not sampled here, and frames are read in their order.
    let mark = format!("looked at {}", crate::telemetry::now_ns());
    telemetry.log(&mark, 9);
    until(rig, "all frames are read", || {
        let logs = rig.call("engine::logs::list", &json!({}));
        logs["logs"].as_array()?.iter().any(|log| log["body"] == mark.as_str()).then_some(())
    });
    let listed = rig.call("engine::traces::list", &json!({"search_all_spans": true, "limit": 1000}));
    let spans = listed["spans"].as_array().expect("spans").iter();
    let mut names: Vec<String> = spans.map(|span| span["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    let _ = rig.call("engine::traces::clear", &json!({}));
    names
}

#[test]
fn sampling_changes_at_once() {
    let rig = engine("");
    let mut telemetry = Telemetry::connect(&rig);
    let mut send = |settings: Value, service: &str, spans: &[Value]| {
        observe(&rig, settings);
        telemetry.spans(service, spans);
        kept(&rig, &mut telemetry)
    };
    let pair = [span(1, 1, None, "root"), span(1, 2, Some(1), "child")];
    assert_eq!(send(json!({}), "shop", &pair), ["child", "root"]);
    assert!(send(json!({"sampling_ratio": 0}), "shop", &pair).is_empty());
    // The more exact setting wins.
    assert_eq!(send(json!({"sampling_ratio": 0, "sampling": {"default": 1}}), "shop", &pair).len(), 2);
    assert!(send(json!({"sampling": {"default": 0}}), "shop", &pair).is_empty());
    let rules = json!([{"operation": "ch*", "service": "shop", "rate": 1}, {"service": "till", "rate": 1}]);
    let by_rule = json!({"sampling": {"default": 0, "rules": rules}});
    assert_eq!(send(by_rule.clone(), "shop", &pair), ["child"]);
    assert_eq!(send(by_rule.clone(), "till", &pair), ["child", "root"]);
    assert!(send(by_rule, "other", &pair).is_empty());
    // The first span speaks for its trace, or each for itself.
    let each = json!({"sampling": {"rules": [{"operation": "child", "rate": 0}]}});
    let mut together = each.clone();
    together["sampling"]["parent_based"] = json!(true);
    assert_eq!(send(each, "shop", &pair), ["root"]);
    assert_eq!(send(together, "shop", &pair), ["child", "root"]);
    let many: Vec<Value> = (10..510).map(|number| span(number, number, None, "one")).collect();
    let limited = json!({"memory_max_spans": 1000, "sampling": {"rate_limit": {"max_traces_per_second": 1}}});
    let left = send(limited, "shop", &many).len();
    assert!((1..250).contains(&left), "{left}");
    // About half of many.
    let left = send(json!({"sampling_ratio": 0.5}), "shop", &many).len();
    assert!((150..350).contains(&left), "{left}");
}

#[test]
fn fewer_spans_are_kept_and_traces_are_shown_another_way_at_once() {
    let rig = engine("");
    let mut telemetry = Telemetry::connect(&rig);
    let chain = [span(1, 1, None, "door"), span(1, 2, Some(1), "hop 1"), span(1, 3, Some(2), "shelf")];
    telemetry.spans("shop", &chain);
    let total = || rig.call("engine::traces::list", &json!({"search_all_spans": true}))["total"].clone();
    until(&rig, "three spans", || (total() == 3).then_some(()));
    let below_door = || {
        let tree = rig.call("engine::traces::tree", &json!({"trace_id": trace_id(1)}));
        assert_eq!(tree["roots"][0]["name"], "door", "{tree}");
        tree["roots"][0]["children"][0]["name"].clone()
    };
    assert_eq!(below_door(), "hop 1");
    for (collapse, below) in [
        (json!([{"name": "hop *", "service": "till"}]), "hop 1"),
        (json!([{"name": "hop *", "service": "sh?p"}]), "shelf"),
        (json!([{"name": "hop *"}]), "shelf"),
        (json!([{"name": "lift *"}]), "hop 1"),
    ] {
        observe(&rig, json!({"collapse_spans": collapse}));
        assert_eq!(below_door(), below, "{collapse}");
    }
    observe(&rig, json!({"memory_max_spans": 2}));
    assert_eq!(total(), 2);
}
