//! Items at another engine, which is pretended: its wire is real, and its streams are another worker's.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::fake::{self, FakeEngine, PATIENCE};
use crate::subscriber::Subscriber;
use crate::{Worker, in_memory, item, item_with, worker};

type Subscribed = Arc<Mutex<Vec<(mpsc::UnboundedSender<Value>, String)>>>;

/// Serves `stream::*`, `publish` and `subscribe` as an engine does; returns its URL.
async fn other_engine(streams: Arc<Worker>) -> (String, Subscribed) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let subscribed = Subscribed::default();
    let shared = Arc::clone(&subscribed);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(peer(socket, Arc::clone(&streams), Arc::clone(&shared)));
        }
    });
    (url, subscribed)
}

async fn peer(socket: TcpStream, streams: Arc<Worker>, subscribed: Subscribed) {
    let socket = accept_async(socket).await.expect("a WebSocket");
    let (mut sink, mut stream) = socket.split();
    let (answers, mut outgoing) = mpsc::unbounded_channel::<Value>();
    tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(Message::text(message.to_string())).await.is_err() {
                return;
            }
        }
    });
    let _ = answers.send(json!({ "type": "workerregistered", "worker_id": "5b0c1c7e-5a83-4d2c-9a44-6a2f0f6a7c11" }));
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).expect("JSON");
        let function_id = message["function_id"].as_str().unwrap_or_default().to_owned();
        if message["type"] == "registertrigger" && message["config"]["topic"] == "stream.events" {
            subscribed.lock().expect("no panic").push((answers.clone(), function_id));
        } else if message["type"] == "invokefunction" && function_id == "publish" {
            for (subscriber, function_id) in &*subscribed.lock().expect("no panic") {
                let id = "0f1a2f0e-52a5-4e5c-8c63-3a1a5f0f9d10";
                let _ = subscriber.send(json!({
                    "type": "invokefunction", "invocation_id": id, "function_id": function_id,
                    "data": message["data"]["data"]
                }));
            }
        } else if message["type"] == "invokefunction" && function_id.starts_with("stream::") {
            let (streams, answers) = (Arc::clone(&streams), answers.clone());
            tokio::spawn(async move {
                let mut answer = json!({
                    "type": "invocationresult", "invocation_id": message["invocation_id"], "function_id": function_id
                });
                match fake::call(&streams.builtin, &function_id, message["data"].clone()).await {
                    Ok(None) => {}
                    Ok(Some(result)) => answer["result"] = result,
                    Err(error) => answer["error"] = json!(error),
                }
                let _ = answers.send(answer);
            });
        }
    }
}

async fn subscribers_there(subscribed: &Subscribed, wanted: usize) {
    let there = async {
        while subscribed.lock().expect("no panic").len() < wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.expect("subscribed");
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_bridge_to_one_share_its_items_and_see_each_others_events() {
    let (there, here, beside) = (FakeEngine::new(), FakeEngine::new(), FakeEngine::new());
    let streams = Arc::new(worker(&there, in_memory()).await);
    let (url, subscribed) = other_engine(Arc::clone(&streams)).await;
    let bridged = json!({ "adapter": { "name": "bridge", "config": { "bridge_url": url } } });
    let (one, other) = (worker(&here, bridged.clone()).await, worker(&beside, bridged).await);
    subscribers_there(&subscribed, 2).await;
    let (mut seen_here, mut seen_beside) = (Subscriber::connect(&one).await, Subscriber::connect(&other).await);
    for subscriber in [&mut seen_here, &mut seen_beside] {
        subscriber.join("s", "room", None).await;
        subscriber.hears("sync", json!([])).await;
    }
    let set = one.call("set", item_with("room", "a", "data", json!({ "n": 1 }))).await;
    assert_eq!(set, Some(json!({ "old_value": null, "new_value": { "n": 1 } })));
    for subscriber in [&mut seen_here, &mut seen_beside] {
        subscriber.hears("create", json!({ "n": 1 })).await;
    }
    assert_eq!(streams.call("get", item("room", "a")).await, Some(json!({ "n": 1 })), "it is kept there");
    let increment = json!([{ "type": "increment", "path": "n", "by": 1 }]);
    let updated = other.call("update", item_with("room", "a", "ops", increment)).await.expect("a result");
    assert_eq!(updated["new_value"], json!({ "n": 2 }));
    assert_eq!(one.call("list", json!({ "stream_name": "chat", "group_id": "room" })).await, Some(json!([{ "n": 2 }])));
    assert_eq!(one.call("list_groups", json!({ "stream_name": "chat" })).await, Some(json!(["room"])));
    assert_eq!(
        one.call("list_all", json!({})).await,
        Some(json!({ "stream": [{ "id": "chat", "groups": ["room"] }], "count": 1 }))
    );
    one.call("send", json!({ "stream_name": "chat", "group_id": "room", "type": "hi", "data": 1 })).await;
    assert_eq!(other.call("delete", item("room", "a")).await, Some(json!({ "old_value": { "n": 2 } })));
    assert_eq!(one.call("get", item("room", "a")).await, None);
    // Each once, its own included; the other engine brings them in any order.
    for subscriber in [&mut seen_here, &mut seen_beside] {
        let mut kinds = [subscriber.next().await.0, subscriber.next().await.0, subscriber.next().await.0];
        kinds.sort();
        assert_eq!(kinds, ["delete", "event", "update"]);
    }
    one.set("room", "b", json!("last")).await;
    for subscriber in [&mut seen_here, &mut seen_beside] {
        subscriber.hears("create", json!("last")).await;
    }
}
