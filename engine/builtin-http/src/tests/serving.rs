//! Listening, moving, and settings that change while requests come in.

use std::sync::Arc;

use bytes::Bytes;
use engine_builtin::Builtin;
use http_body_util::Full;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::fake::{FakeEngine, PATIENCE, answer, bind, connect, listening, read, request, send};
use crate::exchange::Shared;
use crate::listener::serve;
use crate::settings::HttpSettings;
use crate::{Http, NAME, create};

#[tokio::test]
async fn routes_change_under_a_connection_that_stays() {
    let engine = FakeEngine::new();
    engine.offer_value("a", json!({"body": "a"}));
    engine.offer_value("b", json!({"body": "b"}));
    let (http, address) = listening(&engine, json!({})).await;
    let mut client = connect::<Full<Bytes>>(address).await;
    for (id, status) in [("a", 200), ("b", 200), ("a", 200)] {
        bind(&http, id, json!({"api_path": "x"}));
        client.ready().await.expect("the connection stays");
        let seen = read(client.send_request(request("GET", "/x")).await.expect("an answer")).await;
        assert_eq!((seen.status, seen.json()), (status, json!(id)));
    }
    http.unbind("http", "a");
    http.unbind("http", "b");
    client.ready().await.expect("the connection stays");
    assert_eq!(client.send_request(request("GET", "/x")).await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn it_moves_without_losing_a_request() {
    let engine = FakeEngine::new();
    let (called, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (calling, going) = (Arc::clone(&called), Arc::clone(&go));
    engine.offer("slow", move |_| {
        let (calling, going) = (Arc::clone(&calling), Arc::clone(&going));
        async move {
            calling.notify_one();
            going.notified().await;
            answer(json!({"body": "done"}))
        }
    });
    engine.offer_value("quick", json!({"body": "quick"}));
    let (http, old) = listening(&engine, json!({})).await;
    bind(&http, "slow", json!({"api_path": "slow"}));
    bind(&http, "quick", json!({"api_path": "quick"}));
    let asking = tokio::spawn(send(old, request("GET", "/slow")));
    timeout(PATIENCE, called.notified()).await.expect("in time");
    http.apply(json!({"host": "127.0.0.2", "port": 0})).await.expect("another address");
    let new = http.address().await.expect("it listens");
    assert_ne!(old, new);
    assert_eq!(send(new, request("GET", "/quick")).await.json(), json!("quick"));
    TcpStream::connect(old).await.expect_err("nobody is there any more");
    go.notify_one();
    assert_eq!(asking.await.expect("an answer").json(), json!("done"));
}

#[tokio::test]
async fn an_address_that_cannot_be_had_changes_nothing() {
    let engine = FakeEngine::new();
    engine.offer_value("f", json!({}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "f", json!({"api_path": "x"}));
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let cors = json!({"allowed_origins": ["https://a"]});
    for settings in [
        json!({"host": "127.0.0.1", "port": port, "cors": cors}),
        // Documentation's address, never this machine's.
        json!({"host": "203.0.113.1", "port": address.port(), "cors": cors}),
        json!({"host": 5}),
    ] {
        http.apply(settings).await.expect_err("it cannot be had");
        let seen = send(address, request("GET", "/x")).await;
        assert_eq!((seen.status, &seen.headers["access-control-allow-origin"]), (200, &"*".parse().expect("text")));
    }
}

#[tokio::test]
async fn one_port_can_be_opened_to_other_hosts_and_closed_again() {
    let engine = FakeEngine::new();
    engine.offer_value("f", json!({}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "f", json!({"api_path": "x"}));
    for host in ["0.0.0.0", "127.0.0.1"] {
        http.apply(json!({"host": host, "port": address.port()})).await.expect("the same port");
        assert_eq!(http.address().await.expect("it listens").ip().to_string(), host);
        assert_eq!(send(address, request("GET", "/x")).await.status, 200);
    }
}

#[tokio::test]
async fn an_address_that_was_lost_is_taken_again_with_the_next_settings() {
    let engine = FakeEngine::new();
    engine.offer_value("f", json!({}));
    let (http, _) = listening(&engine, json!({})).await;
    bind(&http, "f", json!({"api_path": "x"}));
    let settings = || json!({"host": "127.0.0.1", "port": 0});
    http.lose_its_address().await;
    assert_eq!(http.address().await, None);
    http.apply(settings()).await.expect("the address it had");
    let address = http.address().await.expect("it listens");
    assert_eq!(send(address, request("GET", "/x")).await.status, 200);
    http.stop().await;
    http.apply(settings()).await.expect("settings");
    assert_eq!(http.address().await, None, "a stop is for good");
}

#[tokio::test]
async fn other_settings_count_from_the_next_request_on() {
    let engine = FakeEngine::new();
    engine.offer_value("f", json!({}));
    engine.offer_value("guard", json!({"action": "respond", "response": {"status_code": 401}}));
    engine.offer("stuck", |_| std::future::pending());
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "f", json!({"api_path": "x"}));
    bind(&http, "stuck", json!({"api_path": "stuck"}));
    let mut client = connect::<Full<Bytes>>(address).await;
    assert_eq!(read(client.send_request(request("GET", "/x")).await.expect("an answer")).await.status, 200);
    let settings = json!({"host": "127.0.0.1", "port": 0, "default_timeout": 1,
        "cors": {"allowed_origins": ["https://a"]}});
    http.apply(settings).await.expect("settings");
    assert_eq!(http.address().await, Some(address), "the address is the same");
    client.ready().await.expect("the connection stays");
    let seen = read(client.send_request(request("GET", "/stuck")).await.expect("an answer")).await;
    assert_eq!(seen.status, 504);
    assert!(!seen.headers.contains_key("access-control-allow-origin"));
    let settings = json!({"host": "127.0.0.1", "port": 0, "middleware": [{"function_id": "guard"}]});
    http.apply(settings).await.expect("settings");
    client.ready().await.expect("the connection stays");
    assert_eq!(client.send_request(request("GET", "/x")).await.expect("an answer").status(), 401);
}

#[tokio::test]
async fn a_start_falls_back_to_the_declared_address() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stored = json!({"host": "127.0.0.1", "port": taken.local_addr().expect("an address").port()});
    let start = async |declared| {
        let http = Http::new(FakeEngine::new(), stored.clone(), Some(declared)).expect("settings");
        http.start().await.map(|()| http)
    };
    let http = start(json!({"host": "127.0.0.1", "port": 0})).await.expect("the declared address");
    assert!(http.address().await.is_some());
    assert!(start(json!({"port": 0})).await.is_err(), "that would be open to everyone");
}

#[tokio::test]
async fn a_stop_ends_requests_that_do_not_end_themselves() {
    let engine = FakeEngine::new();
    engine.offer("stuck", |_| std::future::pending());
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "stuck", json!({"api_path": "x"}));
    let mut client = connect::<Full<Bytes>>(address).await;
    let (asking, ()) = tokio::join!(client.send_request(request("GET", "/x")), async {
        timeout(PATIENCE, http.stop()).await.expect("in time");
    });
    asking.expect_err("its connection is closed");
    TcpStream::connect(address).await.expect_err("nobody is there any more");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_head_is_dropped() {
    let settings = HttpSettings::new(json!({})).expect("settings");
    let shared = Arc::new(Shared::new(FakeEngine::new(), &settings));
    for said in ["", "GET / HTTP/1.1\r\nhost: te"] {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(said.as_bytes()).await.expect("room");
        serve(server, Arc::clone(&shared), CancellationToken::new()).await;
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("an end");
    }
}

#[tokio::test]
async fn it_is_what_the_engine_starts() {
    let http = create(FakeEngine::new(), json!(null)).await.expect("defaults");
    assert_eq!(http.name(), NAME);
    assert_eq!(http.trigger_types().iter().map(|kind| kind.id.as_str()).collect::<Vec<_>>(), ["http"]);
    assert!(create(FakeEngine::new(), json!({"nope": 1})).await.is_err());
}
