//! Items that subscribers see change: a function, and a socket as a browser would open it.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{Inbox, Outcome, bind, call, connect, setting, there};

pub async fn run() -> Outcome {
    let iii = connect("chat");
    let seen = Inbox::registered(&iii, "chat::changed");
    let joined = Inbox::registered(&iii, "chat::joined");
    let left = Inbox::registered(&iii, "chat::left");
    bind(&iii, "stream", "chat::changed", json!({ "stream_name": "chat" }))?;
    bind(&iii, "stream:join", "chat::joined", json!({}))?;
    bind(&iii, "stream:leave", "chat::left", json!({}))?;
    there(&iii, &["chat::changed", "chat::joined", "chat::left"]).await;

    let (mut socket, _) = tokio_tungstenite::connect_async(setting("III_TEST_STREAMS")).await?;
    let join = json!({ "subscriptionId": "s1", "streamName": "chat", "groupId": "room-4", "id": null });
    socket.send(Message::text(json!({ "type": "join", "data": join }).to_string())).await?;
    let mut events: Vec<Value> = Vec::new();
    let item = |more: Value| {
        let mut payload = json!({ "stream_name": "chat", "group_id": "room-4", "item_id": "msg-1" });
        payload.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        payload
    };
    while events.len() < 5 {
        let frame = socket.next().await.expect("the socket stays")?;
        let Message::Text(text) = frame else { continue };
        events.push(serde_json::from_str(&text)?);
        match events.len() {
            1 => call(&iii, "stream::set", item(json!({ "data": { "text": "hi" } }))).await?,
            2 => {
                let ops = json!([{ "type": "set", "path": "seen", "value": 1 }]);
                call(&iii, "stream::update", item(json!({ "ops": ops }))).await?
            }
            3 => call(&iii, "stream::send", item(json!({ "type": "typing", "data": { "who": "Ada" } }))).await?,
            4 => call(&iii, "stream::delete", item(json!({}))).await?,
            _ => Value::Null,
        };
    }
    socket.close(None).await?;

    let kinds: Vec<&Value> = events.iter().map(|event| &event["event"]["type"]).collect();
    assert_eq!(kinds, ["sync", "create", "update", "event", "delete"]);
    assert_eq!(events[0]["event"]["data"], json!([]));
    assert_eq!(events[1]["id"], "msg-1");
    assert_eq!(events[2]["event"]["data"], json!({ "text": "hi", "seen": 1 }));
    assert_eq!(events[3]["event"]["event"], json!({ "type": "typing", "data": { "who": "Ada" } }));
    for inbox in [joined, left] {
        let told = inbox.wait(1).await;
        assert_eq!((&told[0]["stream_name"], &told[0]["subscription_id"]), (&json!("chat"), &json!("s1")));
    }
    seen.wait(4).await;
    assert_eq!(call(&iii, "stream::get", item(json!({}))).await?, Value::Null);
    assert_eq!(call(&iii, "stream::list", item(json!({}))).await?, json!([]));
    Ok(())
}
