//! Functions behind HTTP routes: parameters, bodies, statuses, middleware, and bodies that are streamed.

use std::sync::Arc;

use iii_sdk::helpers::extract_channel_refs;
use iii_sdk::{ChannelReader, ChannelWriter, III, IIIError};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{Outcome, bind, call, connect, register, setting, there, until};

/// The channels of a request's and of its answer's body.
fn bodies(url: &str, data: &Value) -> (ChannelReader, ChannelWriter) {
    let ends = extract_channel_refs(data);
    let end = |name: &str| ends.iter().find(|(path, _)| path == name).map(|(_, end)| end).expect("both ends");
    (ChannelReader::new(url, end("request_body")), ChannelWriter::new(url, end("response")))
}

/// Counts a request's body while it arrives, and writes the answer piece by piece.
async fn upload(url: String, data: Value) -> Result<Value, IIIError> {
    let (reader, writer) = bodies(&url, &data);
    let mut size = 0;
    while let Some(piece) = reader.next_binary().await? {
        size += piece.len();
    }
    writer.send_message(&json!({ "type": "set_status", "status_code": 202 }).to_string()).await?;
    writer.write(b"got ").await?;
    writer.write(size.to_string().as_bytes()).await?;
    writer.close().await?;
    Ok(Value::Null)
}

async fn ticks(url: String, data: Value, go_on: Arc<Notify>) -> Result<Value, IIIError> {
    let (_, writer) = bodies(&url, &data);
    writer.write(b"one ").await?;
    go_on.notified().await;
    writer.write(b"two").await?;
    writer.close().await?;
    Ok(Value::Null)
}

fn register_all(iii: &III) {
    register(iii, "web::user", |data| async move {
        let body = json!({
            "id": data["path_params"]["id"], "full": data["query_params"]["full"], "sent": data["body"]
        });
        Ok(json!({ "status_code": 201, "headers": { "x-from": "rust" }, "body": body }))
    });
    let url = iii.address().to_owned();
    register(iii, "web::upload", move |data| upload(url.clone(), data));
    let (url, go_on) = (iii.address().to_owned(), Arc::new(Notify::new()));
    let waiting = Arc::clone(&go_on);
    register(iii, "web::ticks", move |data| ticks(url.clone(), data, Arc::clone(&waiting)));
    register(iii, "web::go-on", move |_| {
        go_on.notify_one();
        async { Ok(Value::Null) }
    });
    register(iii, "web::gate", |data| async move {
        if data["request"]["headers"]["x-key"] == "let-me-in" {
            return Ok(json!({ "action": "continue" }));
        }
        Ok(json!({ "action": "respond", "response": { "status_code": 401, "body": { "error": "no key" } } }))
    });
    register(iii, "web::broken", |_| async { Err(IIIError::Handler("a fault of the handler".to_owned())) });
}

fn ask(method: Method, path: &str) -> RequestBuilder {
    reqwest::Client::new().request(method, format!("{}/{path}", setting("III_TEST_HTTP")))
}

async fn status(request: RequestBuilder) -> Option<u16> {
    request.send().await.ok().map(|answer| answer.status().as_u16())
}

pub async fn run() -> Outcome {
    let iii = connect("web");
    register_all(&iii);
    there(&iii, &["web::user", "web::upload", "web::ticks", "web::go-on", "web::gate", "web::broken"]).await;
    bind(&iii, "http", "web::user", json!({ "api_path": "rust/users/:id", "http_method": "POST" }))?;
    bind(&iii, "http", "web::upload", json!({ "api_path": "rust/upload", "http_method": "PUT" }))?;
    bind(&iii, "http", "web::ticks", json!({ "api_path": "rust/ticks", "http_method": "GET" }))?;
    let guarded =
        json!({ "api_path": "rust/guarded/:id", "http_method": "POST", "middleware_function_ids": ["web::gate"] });
    bind(&iii, "http", "web::user", guarded)?;
    bind(&iii, "http", "web::broken", json!({ "api_path": "/rust/broken", "http_method": "GET" }))?;
    until("the routes", async || (status(ask(Method::GET, "rust/broken")).await == Some(500)).then_some(())).await;

    let ada = json!({ "name": "Ada" });
    let created = ask(Method::POST, "rust/users/42?full=1").json(&ada).send().await?;
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["x-from"], "rust");
    assert_eq!(created.json::<Value>().await?, json!({ "id": "42", "full": "1", "sent": ada }));

    let guarded = || ask(Method::POST, "rust/guarded/1").json(&ada);
    assert_eq!(status(guarded()).await, Some(401));
    assert_eq!(status(guarded().header("x-key", "let-me-in")).await, Some(201));

    let fault = ask(Method::GET, "rust/broken").send().await?;
    assert_eq!(fault.status(), 500);
    assert_eq!(fault.json::<Value>().await?["error"]["code"], "invocation_failed");
    assert_eq!(status(ask(Method::GET, "rust/nowhere")).await, Some(404));

    let body = "x".repeat(5_000_000);
    let sent = ask(Method::PUT, "rust/upload").header("content-type", "application/octet-stream").body(body);
    let sent = sent.send().await?;
    assert_eq!(sent.status(), 202);
    assert_eq!(sent.text().await?, "got 5000000");

    let mut ticking = ask(Method::GET, "rust/ticks").send().await?;
    let mut said = Vec::new();
    while let Some(piece) = ticking.chunk().await? {
        said.extend_from_slice(&piece);
        if said == b"one " {
            call(&iii, "web::go-on", json!({})).await?; // while the route's handler still waits
        }
    }
    assert_eq!(said, b"one two");
    Ok(())
}
