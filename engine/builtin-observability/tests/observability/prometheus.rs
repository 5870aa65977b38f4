//! A real Prometheus scrapes the endpoint and knows what we count.

use crate::fake::{frame, started, until};
use engine_builtin::{Builtin, Stats};
use serde_json::{Value, json};
use test_rig::Prometheus;

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_counts_of_the_engine_and_metrics_of_sdks() {
    let (engine, worker) = started(json!({})).await;
    *engine.stats.lock().expect("a lock") = Stats {
        calls: 41,
        by_function: vec![("shop::\"buy\"".into(), 41)],
        durations_us: vec![(1000, 40), (u64::MAX, 1)],
        ..Stats::default()
    };
    let point = json!({"attributes": [{"key": "http.route", "value": {"stringValue": "/buy\n"}}], "asInt": "7"});
    let histogram = json!({"count": 3, "sum": 2.5, "bucketCounts": [1, 2], "explicitBounds": [1]});
    let request = json!({"resourceMetrics": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
        "scopeMetrics": [{"metrics": [
            {"name": "shop.requests", "sum": {"isMonotonic": true, "aggregationTemporality": 2, "dataPoints": [point]}},
            {"name": "shop.took", "histogram": {"aggregationTemporality": 2, "dataPoints": [histogram]}},
        ]}],
    }]});
    worker.ingest(&frame("MTRC", &request)).expect("taken");
    let wanted = |answer: &Value| answer["sdk_metrics"].as_array().is_some_and(|metrics| metrics.len() == 2);
    until(&worker, "engine::metrics::list", json!({}), wanted).await;

    let address = worker.prometheus_address().expect("an endpoint");
    let prometheus = Prometheus::scraping(address);
    let value = |query: &str| prometheus.await_samples(query)[0]["value"][1].as_str().expect("a value").to_owned();
    assert_eq!(value("iii_invocations_total"), "41");
    assert_eq!(value("iii_function_invocations_total{function_id=\"shop::\\\"buy\\\"\"}"), "41");
    assert_eq!(value("iii_invocation_duration_seconds_bucket{le=\"0.001\"}"), "40");
    assert_eq!(value("shop_requests_total{service_name=\"shop\",http_route=\"/buy\\n\"}"), "7");
    assert_eq!(value("shop_took_bucket{le=\"+Inf\"}"), "3");
    assert_eq!(value("up"), "1");
    worker.stop().await;
}
