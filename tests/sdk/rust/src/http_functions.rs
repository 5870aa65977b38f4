//! Functions that are HTTP endpoints elsewhere: the engine makes the request, callers see a function.

use std::collections::HashMap;

use iii_sdk::{HttpInvocationConfig, HttpMethod, RegisterFunction};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Outcome, call, connect, failure, there};

pub async fn run() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/price", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((peer, _)) = listener.accept().await {
            answer(peer).await.expect("a request of the engine");
        }
    });

    let iii = connect("outside");
    let headers = HashMap::from([("x-key".to_owned(), "let-me-in".to_owned())]);
    let endpoint = HttpInvocationConfig { url, method: HttpMethod::Post, timeout_ms: None, headers, auth: None };
    iii.register_function("outside::price", RegisterFunction::http(endpoint));
    there(&iii, &["outside::price"]).await;

    let priced = call(&iii, "outside::price", json!({ "qty": 3 })).await?;
    assert_eq!(priced, json!({ "total": 4.5, "key": true }));
    let (code, message) = failure(call(&iii, "outside::price", json!({ "qty": 0 })).await);
    assert_eq!(code, "empty_basket");
    assert!(message.contains("nothing to price"), "{message}");
    Ok(())
}

/// Reads one request, answers it and closes.
async fn answer(mut peer: TcpStream) -> Outcome {
    let mut request = Vec::new();
    let (head, asked) = loop {
        assert_ne!(peer.read_buf(&mut request).await?, 0, "half a request");
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if let Ok(asked) = serde_json::from_str::<Value>(body) {
            break (head.to_owned(), asked);
        }
    };
    let (status, body) = match asked["qty"].as_f64() {
        Some(quantity) if quantity > 0.0 => {
            ("200 OK", json!({ "total": quantity * 1.5, "key": head.contains("x-key: let-me-in") }))
        }
        _ => ("422 No", json!({ "error": { "code": "empty_basket", "message": "nothing to price" } })),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    peer.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).await?;
    Ok(())
}
