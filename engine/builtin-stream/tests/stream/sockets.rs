//! Subscribers over real sockets.

use std::sync::Arc;

use builtin_stream::Stream;
use engine_builtin::{Builtin, ErrorBody};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::fake::{FakeEngine, PATIENCE, bind, next};
use crate::subscriber::{Subscriber, url};
use crate::{in_memory, item, worker};

#[tokio::test]
async fn a_subscriber_sees_what_is_there_and_then_every_event_once_for_each_subscription() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    worker.set("room", "a", json!(1)).await;
    let mut subscriber = Subscriber::connect(&worker).await;
    subscriber.join("group", "room", None).await;
    let sync = subscriber.object().await;
    assert_eq!((&sync["id"], &sync["streamName"], &sync["groupId"]), (&Value::Null, &json!("chat"), &json!("room")));
    assert_eq!(sync["event"], json!({ "type": "sync", "data": [1] }));
    subscriber.join("item", "room", Some("b")).await;
    subscriber.hears("sync", json!(null)).await;
    worker.set("room", "b", json!(2)).await;
    subscriber.hears("create", json!(2)).await;
    subscriber.hears("create", json!(2)).await;
    worker.set("hall", "b", json!(3)).await;
    worker.call("delete", item("room", "a")).await;
    subscriber.hears("delete", json!(1)).await;
    subscriber.leave("group", "room").await;
    subscriber.join("again", "hall", None).await;
    subscriber.hears("sync", json!([3])).await;
    worker.set("room", "a", json!(4)).await;
    worker.set("room", "b", json!(5)).await;
    subscriber.hears("update", json!(5)).await;
}

#[tokio::test]
async fn bad_frames_are_ignored_large_ones_end_the_connection_and_pings_are_answered() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let mut subscriber = Subscriber::connect(&worker).await;
    for bad in ["", "no JSON", "{}", r#"{"type":"join"}"#, r#"{"type":"leave","data":{"subscriptionId":"unknown"}}"#] {
        subscriber.send(bad).await;
    }
    subscriber.socket.send(Message::binary(vec![0xff; 100])).await.expect("sent");
    subscriber.socket.send(Message::Ping("here?".into())).await.expect("sent");
    let pong = tokio::time::timeout(PATIENCE, subscriber.socket.next()).await.expect("in time");
    assert_eq!(pong.expect("open").expect("a message"), Message::Pong("here?".into()));
    subscriber.join("s", "room", None).await;
    subscriber.hears("sync", json!([])).await;
    let _ = subscriber.socket.send(Message::text("x".repeat(100_000))).await;
    let ended = async { while let Some(Ok(_)) = subscriber.socket.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("ended");
}

#[tokio::test]
async fn a_join_handler_is_awaited_and_may_refuse_and_leaving_is_told() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    fake.offer(
        "members only",
        |visitor| async move { Ok(json!({ "unauthorized": visitor["group_id"] == "private" })) },
    );
    fake.offer("fails", |_| async { Err(ErrorBody::new("x", "x")) });
    let mut left = fake.note("left");
    bind(&worker.builtin, "stream:join", "fails", json!({}));
    bind(&worker.builtin, "stream:join", "members only", json!({}));
    bind(&worker.builtin, "stream:leave", "left", json!({}));
    let mut subscriber = Subscriber::connect(&worker).await;
    subscriber.join("s1", "private", None).await;
    assert_eq!(subscriber.object().await["event"], json!({ "type": "unauthorized" }));
    worker.set("private", "secret", json!(1)).await;
    subscriber.join("s2", "room", Some("a")).await;
    subscriber.hears("sync", json!(null)).await;
    subscriber.join("s3", "room", None).await;
    subscriber.hears("sync", json!([])).await;
    subscriber.leave("s2", "room").await;
    let visitor = |subscription: &str, id: Option<&str>| {
        json!({
            "subscription_id": subscription, "stream_name": "chat", "group_id": "room", "id": id, "context": null
        })
    };
    assert_eq!(next(&mut left).await.0, visitor("s2", Some("a")));
    drop(subscriber);
    assert_eq!(next(&mut left).await.0, visitor("s3", None));
}

#[tokio::test]
async fn the_auth_function_is_asked_at_the_door_and_its_context_goes_to_handlers() {
    let fake = FakeEngine::new();
    let mut settings = in_memory();
    settings["auth_function"] = json!("auth");
    let worker = worker(&fake, settings).await;
    let Err(Error::Http(answer)) = connect_async(url(&worker)).await else { panic!("let in without an auth function") };
    assert_eq!(answer.status(), 401);
    fake.offer("auth", |asked| async move {
        assert!(asked["addr"].as_str().expect("an address").starts_with("127.0.0.1:"));
        assert_eq!(asked["path"], "/");
        match asked["headers"]["authorization"].as_str() {
            Some("let me in") => Ok(json!({ "context": { "tags": asked["query_params"]["tag"] } })),
            _ => Err(ErrorBody::new("NO", "no")),
        }
    });
    let Err(Error::Http(answer)) = connect_async(url(&worker)).await else { panic!("let in without a secret") };
    assert_eq!(answer.status(), 401);
    let mut joined = fake.note("joined");
    bind(&worker.builtin, "stream:join", "joined", json!({}));
    let mut request = format!("{}?tag=a&tag=b", url(&worker)).into_client_request().expect("a request");
    request.headers_mut().insert("authorization", "let me in".parse().expect("a header"));
    let (socket, _) = connect_async(request).await.expect("let in");
    let mut subscriber = Subscriber { socket };
    subscriber.join("s", "room", None).await;
    assert_eq!(next(&mut joined).await.0["context"], json!({ "tags": ["a", "b"] }));
    let other = format!("{}other", url(&worker));
    let Err(Error::Http(answer)) = connect_async(other).await else { panic!("another path") };
    assert_eq!(answer.status(), 404);
}

/// Writers go on all the time: whatever is not in the snapshot follows it, in order, once.
#[tokio::test(flavor = "multi_thread")]
async fn between_what_was_there_and_the_events_nothing_is_lost_and_nothing_comes_twice() {
    let fake = FakeEngine::new();
    let mut settings = in_memory();
    settings["adapter"]["config"]["channel_size"] = json!(10_000);
    let worker = Arc::new(worker(&fake, settings).await);
    let writing = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move {
            for number in 1..=2000 {
                worker.set("room", "counter", json!(number)).await;
            }
        }
    });
    let subscribers = (0..8).map(|_| {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move {
            let mut subscriber = Subscriber::connect(&worker).await;
            for round in 0.. {
                subscriber.join(&format!("s{round}"), "room", Some("counter")).await;
                let (event, data) = subscriber.next().await;
                assert_eq!(event, "sync");
                let contained = data.as_u64().unwrap_or(0);
                for number in contained + 1..=contained + 50 {
                    if number > 2000 {
                        return;
                    }
                    assert_eq!(subscriber.next().await.1, json!(number), "after {contained}");
                }
                subscriber = Subscriber::connect(&worker).await;
            }
        })
    });
    for subscriber in subscribers.collect::<Vec<_>>() {
        subscriber.await.expect("no panic");
    }
    writing.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_at_once_are_seen_in_the_order_in_which_they_were_made() {
    let fake = FakeEngine::new();
    let mut settings = in_memory();
    settings["adapter"]["config"]["channel_size"] = json!(10_000);
    let worker = Arc::new(worker(&fake, settings).await);
    let mut subscriber = Subscriber::connect(&worker).await;
    subscriber.join("s", "room", None).await;
    subscriber.hears("sync", json!([])).await;
    let ops = json!([{ "type": "increment", "path": "", "by": 1 }]);
    let writers = (0..500).map(|_| {
        let (worker, ops) = (Arc::clone(&worker), ops.clone());
        tokio::spawn(async move { worker.call("update", crate::item_with("room", "n", "ops", ops)).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    for number in 1..=500 {
        assert_eq!(subscriber.next().await.1, json!(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_loses_the_oldest_and_holds_up_nobody() {
    let fake = FakeEngine::new();
    let mut settings = in_memory();
    settings["adapter"]["config"]["channel_size"] = json!(4);
    let worker = worker(&fake, settings).await;
    let (mut slow, mut other) = (Subscriber::connect(&worker).await, Subscriber::connect(&worker).await);
    for subscriber in [&mut slow, &mut other] {
        subscriber.join("s", "room", None).await;
        subscriber.hears("sync", json!([])).await;
    }
    // More than sockets hold: 1 MiB each.
    let filler = "x".repeat(1024 * 1024);
    for number in 0..100 {
        worker.set("room", "a", json!([number, filler])).await;
        assert_eq!(other.next().await.1[0], json!(number));
    }
    worker.set("room", "a", json!(["last"])).await;
    let mut seen = 0;
    while slow.next().await.1[0] != "last" {
        seen += 1;
    }
    assert!(seen < 100, "nothing was lost: {seen}");
}

#[tokio::test]
async fn a_new_address_is_listened_on_before_the_old_one_closes_and_connections_stay() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let mut before = Subscriber::connect(&worker).await;
    before.join("s", "room", None).await;
    before.hears("sync", json!([])).await;
    let old = url(&worker);
    let taken = test_rig::free_port();
    let free = std::net::TcpListener::bind(("127.0.0.1", taken)).expect("a port");
    let mut settings = in_memory();
    settings["host"] = json!("127.0.0.1");
    settings["port"] = json!(taken);
    worker.stream.apply(settings.clone()).await.expect_err("the port is taken");
    connect_async(&old).await.expect("still there");
    drop(free);
    worker.stream.apply(settings.clone()).await.expect("applied");
    connect_async(&old).await.expect_err("no longer there");
    // Another host of the same port.
    settings["host"] = json!("0.0.0.0");
    worker.stream.apply(settings).await.expect("applied");
    let (socket, _) = connect_async(format!("ws://127.0.0.1:{taken}/")).await.expect("a socket");
    let mut after = Subscriber { socket };
    after.join("s", "room", None).await;
    after.hears("sync", json!([])).await;
    worker.set("room", "a", json!(1)).await;
    before.hears("create", json!(1)).await;
    after.hears("create", json!(1)).await;
    worker.stream.stop().await;
    let ended = async { while let Some(Ok(_)) = before.socket.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("ended");
}

#[tokio::test]
async fn settings_that_are_cut_short_leave_one_that_listens_when_they_come_again() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let port = test_rig::free_port();
    let at = |host: &str| {
        let mut settings = in_memory();
        settings["host"] = json!(host);
        settings["port"] = json!(port);
        settings
    };
    worker.stream.apply(at("127.0.0.1")).await.expect("applied");
    for steps in 0..200 {
        let cut_short = async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = cut_short => {}
            _ = worker.stream.apply(at("0.0.0.0")) => {}
        }
        worker.stream.apply(at("127.0.0.1")).await.expect("applied");
        connect_async(format!("ws://127.0.0.1:{port}/")).await.expect("listening");
    }
}

#[tokio::test]
async fn what_a_subscription_begins_with_is_bounded_and_events_come_all_the_same() {
    let fake = FakeEngine::new();
    let worker = worker(&fake, in_memory()).await;
    let large = "x".repeat(9 * 1024 * 1024);
    for item in ["a", "b"] {
        worker.set("room", item, json!(large)).await;
    }
    let mut subscriber = Subscriber::connect(&worker).await;
    subscriber.join("s", "room", None).await;
    subscriber.join("other", "hall", None).await;
    subscriber.hears("sync", json!([])).await;
    worker.set("room", "c", json!(1)).await;
    subscriber.hears("create", json!(1)).await;
}

#[tokio::test]
async fn an_address_that_cannot_be_had_at_boot_is_replaced_but_never_by_a_wider_one() {
    let fake = FakeEngine::new();
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = json!(held.local_addr().expect("an address").port());
    let at = |host: &str, port: &Value| {
        let mut settings = in_memory();
        settings["host"] = json!(host);
        settings["port"] = port.clone();
        settings
    };
    let stored = at("127.0.0.1", &taken);
    let stream = Stream::create(fake.engine(), stored.clone(), Some(at("127.0.0.1", &json!(0)))).await;
    let stream = stream.expect("a worker");
    stream.start().await.expect("started at the other address");
    assert!(stream.address().is_some());
    let stream = Stream::create(fake.engine(), stored, Some(at("0.0.0.0", &json!(0)))).await.expect("a worker");
    stream.start().await.expect_err("wider");
}
