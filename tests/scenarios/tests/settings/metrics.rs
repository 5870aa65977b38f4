//! Alerts, and where Prometheus finds the engine: at once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use test_rig::free_port;

use crate::telemetry::{Telemetry, now_ns, observe};
use crate::{PATIENCE, Peer, engine, until};

/// Takes one request, and tells what was in it.
fn webhook() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("http://{}/alarm", listener.local_addr().expect("an address"));
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut text = String::new();
        let mut piece = [0; 4096];
        while !text.contains("\"hook\"") {
            let count = stream.read(&mut piece).expect("a request");
            assert!(count > 0, "only {text}");
            text.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("an answer");
        let _ = sender.send(text);
    });
    (url, receiver)
}

#[test]
fn alerts_are_looked_at_compared_and_told_as_settings_say_from_then_on() {
    let rig = engine("");
    let (peer, (told, pages)) = (Peer::connect(&rig), mpsc::channel());
    peer.offer(&rig, "ops::page", move |alert| {
        let _ = told.send(alert);
        Ok(Value::Null)
    });
    let half_an_hour_ago = now_ns() - 1_800_000_000_000;
    Telemetry::connect(&rig).gauge("shop.carts", 7.0, half_an_hour_ago);
    until(&rig, "the gauge", || {
        let listed = rig.call("engine::metrics::list", &json!({"metric_name": "shop.carts"}));
        (listed["sdk_metrics"].as_array()?.len() == 1).then_some(())
    });
    let (url, posted) = webhook();
    let alert = |name: &str, more: Value| {
        let mut alert = json!({"name": name, "metric": "shop.carts", "threshold": 7, "window_seconds": 7200});
        for (key, value) in more.as_object().expect("an object") {
            alert[key] = value.clone();
        }
        alert
    };
    let alerts = json!([
        alert(
            "page",
            json!({"operator": ">=", "cooldown_seconds": 0, "action": {"type": "function", "path": "ops::page"}})
        ),
        alert(
            "hook",
            json!({"operator": "equal", "cooldown_seconds": 3600, "action": {"type": "webhook", "url": url}})
        ),
        alert("log", json!({"threshold": 6.5, "cooldown_seconds": 3600, "action": {"type": "log"}})),
        alert("above", json!({})),
        alert("late", json!({"operator": ">=", "window_seconds": 60})),
        alert("off", json!({"operator": ">=", "enabled": false})),
        alert("other", json!({"operator": ">=", "metric": "shop.tills"})),
    ]);
    observe(&rig, json!({"alerts": alerts}));
    // The engine looks at them by itself every ten seconds, too: what counts is that it was done.
    let _ = rig.call("engine::alerts::evaluate", &json!({}));
    let page = pages.recv_timeout(PATIENCE).expect("a page");
    assert_eq!((&page["name"], &page["value"], &page["threshold"]), (&json!("page"), &json!(7.0), &json!(7.0)));
    let post = posted.recv_timeout(PATIENCE).expect("a post");
    assert!(post.starts_with("POST /alarm ") && post.contains("\"hook\""), "{post}");
    until(&rig, "the alert in the log", || rig.log().contains("\"log\"").then_some(()));
    let listed = rig.call("engine::alerts::list", &json!({}));
    let firing: Vec<&Value> = listed["alerts"]
        .as_array()
        .expect("alerts")
        .iter()
        .filter_map(|alert| (alert["firing"] == true).then_some(&alert["name"]))
        .collect();
    assert_eq!(firing, ["page", "hook", "log"], "{listed:#}");
    // Those that are cool are told again, and those that are not are not.
    let again = rig.call("engine::alerts::evaluate", &json!({}));
    let names: Vec<&Value> =
        again["triggered_alerts"].as_array().expect("alerts").iter().map(|alert| &alert["name"]).collect();
    assert_eq!((names, &again["evaluated"]), (vec![&json!("page")], &json!(6)));
    observe(&rig, json!({"alerts": []}));
    assert_eq!(rig.call("engine::alerts::list", &json!({}))["alerts"], json!([]));
}

#[test]
fn the_endpoint_for_prometheus_moves_and_goes_at_once() {
    let rig = engine("");
    let (first, second) = (free_port(), free_port());
    let scrapes = |host: &str, port: u16| {
        let mut stream = TcpStream::connect((host, port)).ok()?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        page.contains("iii_build_info{").then_some(())
    };
    let silent = |host: &str, port: u16| scrapes(host, port).is_none().then_some(());
    observe(&rig, json!({"prometheus": {"port": first}}));
    until(&rig, "an endpoint", || scrapes("127.0.0.1", first));
    observe(&rig, json!({"prometheus": {"port": second}}));
    until(&rig, "another port", || scrapes("127.0.0.1", second));
    until(&rig, "the old one is gone", || silent("127.0.0.1", first));
    observe(&rig, json!({"prometheus": {"port": second, "host": "127.0.0.2"}}));
    until(&rig, "another address", || scrapes("127.0.0.2", second));
    until(&rig, "the old one is gone", || silent("127.0.0.1", second));
    observe(&rig, json!({"prometheus": {"port": second, "host": "127.0.0.2", "enabled": false}}));
    until(&rig, "no endpoint", || silent("127.0.0.2", second));
}
