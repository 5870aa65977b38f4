//! Workers that listen: they move without a restart, and take their other settings at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use engine_client::{Call, ErrorBody, FunctionSpec};
use serde_json::{Value, json};
use test_rig::{Rig, free_port};

use crate::{PATIENCE, Peer, engine, set, until};

/// Sends a request with these lines, and returns the answer; none when nobody listens.
fn ask(host: &str, port: u16, lines: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!("{}\r\nHost: test\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

/// A function that never answers, and how often it was called.
fn stuck(rig: &Rig, peer: &Peer, id: &'static str) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let _context = peer.runtime.enter();
    peer.client.register(FunctionSpec { id: id.into(), ..FunctionSpec::default() }, move |_: Call| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    until(rig, id, || rig.trigger("engine::functions::info", &json!({ "function_id": id })).ok());
    calls
}

#[test]
fn http_moves_and_takes_its_rules_at_once() {
    let (first, second) = (free_port(), free_port());
    let rig = engine(&format!("  - {{name: iii-http, config: {{host: 127.0.0.1, port: {first}}}}}\n"));
    let peer = Peer::connect(&rig);
    peer.offer(&rig, "web::page", |_| Ok(json!({ "body": "page" })));
    for (id, status) in [("web::early", 402), ("web::late", 401)] {
        peer.offer(&rig, id, move |_| Ok(json!({ "action": "respond", "response": { "status_code": status } })));
    }
    let calls = stuck(&rig, &peer, "web::stuck");
    peer.bind(&rig, "http", "web::page", &json!({ "api_path": "page" }));
    peer.bind(&rig, "http", "web::stuck", &json!({ "api_path": "stuck" }));
    let with = |more: &Value| {
        let mut settings = json!({ "host": "127.0.0.1", "port": first });
        for (key, value) in more.as_object().expect("an object") {
            settings[key] = value.clone();
        }
        set(&rig, "iii-http", &settings);
    };
    let get = |path: &str| ask("127.0.0.1", first, &[&format!("GET /{path} HTTP/1.1")]).expect("an answer");
    assert_eq!(status(&get("page")), "200");

    with(&json!({ "default_timeout": 50 }));
    assert_eq!(status(&get("stuck")), "504");

    let middleware = |early: i64, late: i64| {
        json!({ "middleware": [
            { "function_id": "web::late", "phase": "preHandler", "priority": late },
            { "function_id": "web::early", "priority": early },
        ] })
    };
    with(&middleware(1, 2));
    assert_eq!(status(&get("page")), "402");
    with(&middleware(2, 1));
    assert_eq!(status(&get("page")), "401");

    with(&json!({ "cors": { "allowed_origins": ["https://shop.test"], "allowed_methods": ["PUT"] } }));
    let question = ["OPTIONS /page HTTP/1.1", "Access-Control-Request-Method: PUT"];
    let preflight = |origin: &str| {
        let answer = ask("127.0.0.1", first, &[question[0], question[1], &format!("Origin: {origin}")]);
        answer.expect("an answer").to_ascii_lowercase()
    };
    let allowed = preflight("https://shop.test");
    assert!(allowed.contains("access-control-allow-origin: https://shop.test"), "{allowed}");
    assert!(allowed.contains("access-control-allow-methods: put\r\n"), "{allowed}");
    assert!(!preflight("https://other.test").contains("access-control-allow-origin"));

    // One that is stuck has the only turn, until there are more.
    with(&json!({ "concurrency_request_limit": 1, "default_timeout": 600_000 }));
    let before = calls.load(Ordering::SeqCst);
    let mut holder = TcpStream::connect(("127.0.0.1", first)).expect("a connection");
    holder.write_all(b"GET /stuck HTTP/1.1\r\nHost: test\r\n\r\n").expect("a request");
    until(&rig, "the turn is taken", || (calls.load(Ordering::SeqCst) > before).then_some(()));
    let waiting = thread::spawn(move || ask("127.0.0.1", first, &["GET /page HTTP/1.1"]).expect("an answer"));
    assert!(!waiting.is_finished());
    with(&json!({ "concurrency_request_limit": 2, "default_timeout": 600_000 }));
    assert_eq!(status(&waiting.join().expect("an answer")), "200");
    drop(holder);

    let page = ["GET /page HTTP/1.1"];
    set(&rig, "iii-http", &json!({ "host": "127.0.0.1", "port": second }));
    assert_eq!(status(&ask("127.0.0.1", second, &page).expect("it listens")), "200");
    assert_eq!(ask("127.0.0.1", first, &page), None);
    set(&rig, "iii-http", &json!({ "host": "127.0.0.2", "port": second }));
    assert_eq!(status(&ask("127.0.0.2", second, &page).expect("it listens")), "200");
    assert_eq!(ask("127.0.0.1", second, &page), None);
}

#[test]
fn streams_move_and_change_their_guard_and_their_store_at_once() {
    let (first, second) = (free_port(), free_port());
    let at = |host: &str, port: u16, more: &Value| {
        let mut settings = json!({ "host": host, "port": port });
        for (key, value) in more.as_object().expect("an object") {
            settings[key] = value.clone();
        }
        settings
    };
    let rig = engine(&format!("  - {{name: iii-stream, config: {{host: 127.0.0.1, port: {first}}}}}\n"));
    let peer = Peer::connect(&rig);
    peer.offer(&rig, "door::closed", |_| Err(ErrorBody::new("NO", "not today")));
    // Asks for a WebSocket; of an answer that goes on only the beginning is read.
    let knock = |host: &str, port: u16| {
        let mut stream = TcpStream::connect((host, port)).ok()?;
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13";
        let request =
            format!("GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[9..]).into_owned())
    };
    assert_eq!(knock("127.0.0.1", first).as_deref(), Some("101"));
    set(&rig, "iii-stream", &at("127.0.0.1", first, &json!({ "auth_function": "door::closed" })));
    assert_eq!(knock("127.0.0.1", first).as_deref(), Some("401"));
    set(&rig, "iii-stream", &at("127.0.0.1", second, &json!({})));
    assert_eq!(knock("127.0.0.1", second).as_deref(), Some("101"));
    assert_eq!(knock("127.0.0.1", first), None);
    set(&rig, "iii-stream", &at("127.0.0.2", second, &json!({})));
    assert_eq!(knock("127.0.0.2", second).as_deref(), Some("101"));
    assert_eq!(knock("127.0.0.1", second), None);

    let item = json!({ "stream_name": "chat", "group_id": "room", "item_id": "a" });
    let write = |data: &str| {
        let mut item = item.clone();
        item["data"] = json!(data);
        let _ = rig.call("stream::set", &item);
    };
    let store = |config: &Value| {
        let adapter = json!({ "adapter": { "name": "kv", "config": config } });
        set(&rig, "iii-stream", &at("127.0.0.1", second, &adapter));
        rig.call("stream::get", &item)
    };
    write("usual");
    let elsewhere = json!({ "file_path": "./elsewhere", "save_interval_ms": 100, "channel_size": 8 });
    assert_eq!(store(&elsewhere), Value::Null);
    assert!(rig.project().join("elsewhere").exists());
    write("elsewhere");
    assert_eq!(store(&json!({ "store_method": "in_memory" })), Value::Null);
    assert_eq!(store(&elsewhere), "elsewhere");
    assert_eq!(store(&json!({ "store_method": "file_based" })), "usual");
}
