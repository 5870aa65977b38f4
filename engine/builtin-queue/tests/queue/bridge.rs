//! Topics of another engine, which is pretended: its wire is real, and its queue is another worker of ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use engine_builtin::{Builtin, ErrorBody};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::fake::{self, FakeEngine, bind, next};
use crate::{ask, has, in_memory, publish, refuse, worker};

/// What an engine does for its queue and its workers; returns its URL.
async fn other_engine(fake: Arc<FakeEngine>, queue: Arc<dyn Builtin>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(peer(socket, Arc::clone(&fake), Arc::clone(&queue)));
        }
    });
    url
}

async fn peer(socket: TcpStream, fake: Arc<FakeEngine>, queue: Arc<dyn Builtin>) {
    let (mut sink, mut stream) = accept_async(socket).await.expect("a WebSocket").split();
    let (answers, mut outgoing) = mpsc::unbounded_channel::<Value>();
    tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(Message::text(message.to_string())).await.is_err() {
                return;
            }
        }
    });
    let waiting = Arc::new(Mutex::new(HashMap::<String, oneshot::Sender<Value>>::new()));
    let _ = answers.send(json!({ "type": "workerregistered", "worker_id": uuid::Uuid::new_v4() }));
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).expect("JSON");
        let function_id = message["function_id"].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str() {
            Some("registerfunction") => {
                let (waiting, answers) = (Arc::clone(&waiting), answers.clone());
                let id = message["id"].as_str().expect("an id").to_owned();
                let function_id = id.clone();
                fake.offer(&id, move |data| {
                    let (told, answer) = oneshot::channel();
                    let id = uuid::Uuid::new_v4().to_string();
                    waiting.lock().expect("no panic").insert(id.clone(), told);
                    let _ = answers.send(json!({
                        "type": "invokefunction", "invocation_id": id, "function_id": function_id, "data": data
                    }));
                    async move {
                        let answer = answer.await.expect("an answer");
                        match answer.get("error") {
                            Some(error) => Err(serde_json::from_value::<ErrorBody>(error.clone()).expect("an error")),
                            None => Ok(answer["result"].clone()),
                        }
                    }
                });
            }
            Some("registertrigger") => bind(&queue, "durable:subscriber", &function_id, message["config"].clone()),
            Some("invocationresult") => {
                let id = message["invocation_id"].as_str().unwrap_or_default();
                if let Some(told) = waiting.lock().expect("no panic").remove(id) {
                    let _ = told.send(message);
                }
            }
            Some("invokefunction") if function_id.contains("::queue::") || function_id == "iii::durable::publish" => {
                let mut answer = json!({
                    "type": "invocationresult", "invocation_id": message["invocation_id"], "function_id": function_id
                });
                match fake::call(&queue, &function_id, message["data"].clone()).await {
                    Ok(None) => {}
                    Ok(Some(result)) => answer["result"] = result,
                    Err(error) => answer["error"] = json!(error),
                }
                let _ = answers.send(answer);
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_another_engine_is_published_to_and_consumed() {
    let (there, here) = (FakeEngine::new(), FakeEngine::new());
    let queue = worker(&there, in_memory()).await;
    let url = other_engine(Arc::clone(&there), Arc::clone(&queue)).await;
    let settings = json!({ "adapter": { "name": "bridge", "config": { "bridge_url": url } } });
    let bridged = worker(&here, settings).await;
    let mut seen = here.note("f");
    let config = json!({ "topic": "t", "queue_config": { "maxRetries": 2, "backoffDelayMs": 1 } });
    bind(&bridged, "durable:subscriber", "f", config);
    publish(&bridged, "t", json!({ "n": 1 })).await;
    assert_eq!(next(&mut seen).await.0, json!({ "n": 1 }));
    publish(&queue, "t", json!({ "n": 2 })).await;
    assert_eq!(next(&mut seen).await.0, json!({ "n": 2 }));
    // A failure here is retried, and dies, over there.
    refuse(&here, "f");
    publish(&bridged, "t", json!({ "n": 3 })).await;
    has(&bridged, "t", 0, 1).await;
    let dead = ask(&bridged, "engine::queue::dlq_messages", json!({ "topic": "t" })).await;
    assert_eq!((&dead[0]["payload"], &dead[0]["retries"]), (&json!({ "n": 3 }), &json!(2)));
    let mut seen = here.note("f");
    assert_eq!(ask(&bridged, "iii::queue::redrive", json!({ "queue": "t" })).await["redriven"], 1);
    assert_eq!(next(&mut seen).await.0, json!({ "n": 3 }));
    let error = crate::enqueue(&bridged, "default", "f", json!(1)).await.expect_err("topics only");
    assert_eq!(error.code, "enqueue_error");
    bridged.stop().await;
}
