//! Bodies that are never held as a whole, and ends that leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engine_builtin::Item;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::fake::{FakeEngine, PATIENCE, answer, bind, connect, listening, read, request, send, with_body};

const CHUNK: usize = 64 * 1024;
const TOTAL: u64 = 100 * 1024 * 1024;

/// What may be on its way: a channel, and buffers of sockets and connections.
const ON_ITS_WAY: u64 = 32 * 1024 * 1024;

#[tokio::test]
async fn a_large_upload_waits_for_its_worker() {
    let sent = Arc::new(AtomicU64::new(0));
    let engine = FakeEngine::new();
    let ahead = Arc::clone(&sent);
    engine.offer("up", move |asked| {
        let ahead = Arc::clone(&ahead);
        async move {
            let (mut channel, mut taken) = (asked.request_body(), 0);
            while let Some(Item::Binary(bytes)) = channel.next().await {
                taken += bytes.len() as u64;
                let ahead = ahead.load(Ordering::SeqCst) - taken;
                assert!(ahead < ON_ITS_WAY, "{ahead} bytes ahead of the worker");
                // Slow on purpose.
                if taken < TOTAL / 4 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            answer(json!({"body": {"taken": taken, "whole": channel.is_whole()}}))
        }
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "up", json!({"api_path": "up", "http_method": "POST"}));
    let chunks = stream::iter(0..TOTAL / CHUNK as u64).map_sent(sent);
    let asking = Request::post("/up").header("host", "test").body(StreamBody::new(chunks)).expect("a request");
    let exchange = async { read(connect(address).await.send_request(asking).await.expect("an answer")).await };
    let seen = timeout(PATIENCE, exchange).await.expect("in time");
    assert_eq!(seen.json(), json!({"taken": TOTAL, "whole": true}));
}

trait MapSent: stream::Stream<Item = u64> + Sized {
    /// Chunks, counted as they are asked for.
    fn map_sent(
        self,
        sent: Arc<AtomicU64>,
    ) -> impl stream::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send + Unpin
    where
        Self: Send + Unpin,
    {
        let chunk = Bytes::from(vec![7; CHUNK]);
        futures_util::StreamExt::map(self, move |_| {
            sent.fetch_add(CHUNK as u64, Ordering::SeqCst);
            Ok(Frame::data(chunk.clone()))
        })
    }
}

impl<S: stream::Stream<Item = u64>> MapSent for S {}

#[tokio::test]
async fn a_large_answer_waits_for_its_client() {
    let written = Arc::new(AtomicU64::new(0));
    let engine = FakeEngine::new();
    let counting = Arc::clone(&written);
    engine.offer("down", move |asked| {
        let (counting, channel) = (Arc::clone(&counting), asked.response());
        async move {
            channel.send(Item::Text(r#"{"type":"set_status","status_code":206}"#.into())).await.expect("a reader");
            let headers = json!({"type": "set_headers", "headers": {"content-length": TOTAL.to_string()}});
            channel.send(Item::Text(headers.to_string())).await.expect("a reader");
            let chunk = Bytes::from(vec![7; CHUNK]);
            while counting.fetch_add(CHUNK as u64, Ordering::SeqCst) < TOTAL {
                channel.send(Item::Binary(chunk.clone())).await.expect("a reader");
            }
            channel.finish();
            Ok(None)
        }
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "down", json!({"api_path": "down"}));
    let exchange = async {
        let mut client = connect::<Full<Bytes>>(address).await;
        let response = client.send_request(request("GET", "/down")).await.expect("an answer");
        assert_eq!((response.status().as_u16(), &response.headers()["content-length"]), (206, &TOTAL.into()));
        let (mut body, mut taken) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            taken += frame.expect("a whole body").into_data().expect("data").len() as u64;
            let ahead = written.load(Ordering::SeqCst) - taken;
            assert!(ahead < ON_ITS_WAY, "{ahead} bytes ahead of the client");
            // Slow on purpose.
            if taken < TOTAL / 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        taken
    };
    assert_eq!(timeout(PATIENCE, exchange).await.expect("in time"), TOTAL);
}

#[tokio::test]
async fn an_echo_streams_both_ways_at_once() {
    let engine = FakeEngine::new();
    engine.offer("echo", |asked| async move {
        let (mut from, to) = (asked.request_body(), asked.response());
        while let Some(item) = from.next().await {
            to.send(item).await.expect("a reader");
        }
        to.finish();
        Ok(None)
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "echo", json!({"api_path": "echo", "http_method": "POST"}));
    let (say, said) = mpsc::channel::<Bytes>(1);
    let chunks = stream::unfold(said, |mut said| async move {
        let chunk = said.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(chunk)), said))
    });
    let body = StreamBody::new(Box::pin(chunks));
    let asking = Request::post("/echo").header("host", "test").body(body).expect("a request");
    let talk = async {
        let mut client = connect(address).await;
        say.send(Bytes::from_static(b"0")).await.expect("a listener");
        let mut echo: Incoming = client.send_request(asking).await.expect("an answer").into_body();
        for number in 0..20 {
            let heard = echo.frame().await.expect("more").expect("a body").into_data().expect("data");
            assert_eq!(heard, number.to_string());
            say.send(Bytes::from((number + 1).to_string())).await.expect("a listener");
        }
        drop(say);
        echo.collect().await.expect("a whole body").to_bytes()
    };
    assert_eq!(timeout(PATIENCE, talk).await.expect("in time"), "20");
}

#[tokio::test]
async fn commands_alone_are_an_answer_and_so_is_an_end_without_a_word() {
    let engine = FakeEngine::new();
    engine.offer("commands", |asked| async move {
        let channel = asked.response();
        channel.send(Item::Text(r#"{"type":"set_status","status_code":202}"#.into())).await.expect("a reader");
        let headers = r#"{"type":"set_headers","headers":{"content-length":"5"}}"#;
        channel.send(Item::Text(headers.into())).await.expect("a reader");
        channel.finish();
        std::future::pending().await
    });
    engine.offer("silent", |asked| async move {
        asked.response().finish();
        Ok(None)
    });
    engine.offer("value", |asked| async move {
        asked.response().finish();
        tokio::task::yield_now().await;
        answer(json!({"status_code": 203}))
    });
    engine.offer("broken", |asked| async move {
        drop(asked.response());
        Ok(None)
    });
    let (http, address) = listening(&engine, json!({})).await;
    for (id, status) in [("commands", 202), ("silent", 200), ("value", 203), ("broken", 500)] {
        bind(&http, id, json!({"api_path": id}));
        assert_eq!(send(address, request("GET", &format!("/{id}"))).await.status, status, "{id}");
    }
}

#[tokio::test]
async fn half_an_answer_does_not_look_like_a_whole_one() {
    let engine = FakeEngine::new();
    let seen = Arc::new(Notify::new());
    let there = Arc::clone(&seen);
    engine.offer("half", move |asked| {
        let (channel, there) = (asked.response(), Arc::clone(&there));
        async move {
            channel.send(Item::Binary(Bytes::from_static(b"half"))).await.expect("a reader");
            there.notified().await;
            drop(channel);
            Ok(None)
        }
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "half", json!({"api_path": "half"}));
    let mut client = connect::<Full<Bytes>>(address).await;
    let response = client.send_request(request("GET", "/half")).await.expect("an answer");
    seen.notify_one();
    timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect_err("half a body");
}

#[tokio::test]
async fn a_client_that_leaves_takes_everything_along() {
    struct Gone(mpsc::Sender<&'static str>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.try_send("the call is forgotten");
        }
    }
    let (tell, mut told) = mpsc::channel(8);
    let engine = FakeEngine::new();
    engine.offer("wait", move |asked| {
        let tell = tell.clone();
        let (mut body, response) = (asked.request_body(), asked.response());
        async move {
            let _gone = Gone(tell.clone());
            let worker = tell.clone();
            tokio::spawn(async move {
                while body.next().await.is_some() {}
                let _ =
                    worker.send(if body.is_whole() { "the upload was whole" } else { "the upload broke off" }).await;
                response.reader_gone().await;
                let _ = worker.send("nobody reads the answer").await;
            });
            let _ = tell.send("called").await;
            std::future::pending().await
        }
    });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "wait", json!({"api_path": "wait", "http_method": "POST"}));
    for (length, upload) in [(1000, "the upload broke off"), (9, "the upload was whole")] {
        let mut socket = TcpStream::connect(address).await.expect("it listens");
        let request = format!("POST /wait HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\nonly this");
        socket.write_all(request.as_bytes()).await.expect("a socket");
        assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some("called"));
        drop(socket);
        let mut heard = Vec::new();
        while heard.len() < 3 {
            heard.push(timeout(PATIENCE, told.recv()).await.expect("in time").expect("more to tell"));
        }
        heard.sort_unstable();
        assert_eq!(heard, ["nobody reads the answer", "the call is forgotten", upload]);
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_both_bodies_is_noticed_though_nobody_writes() {
    let (tell, mut told) = mpsc::channel(1);
    let engine = FakeEngine::new();
    engine.offer("both", move |asked| {
        let (tell, channel, body) = (tell.clone(), asked.response(), asked.request_body());
        // A task of its own, as a worker is: the call is forgotten with its client.
        tokio::spawn(async move {
            channel.send(Item::Binary(Bytes::from_static(b"begun"))).await.expect("a reader");
            drop(body);
            channel.reader_gone().await;
            tell.send("the client has left").await.expect("a listener");
        });
        std::future::pending()
    });
    let (http, address) = listening(&engine, json!({"default_timeout": 1_000_000_000})).await;
    bind(&http, "both", json!({"api_path": "both", "http_method": "POST"}));
    let mut socket = TcpStream::connect(address).await.expect("it listens");
    let request = "POST /both HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\nonly this";
    socket.write_all(request.as_bytes()).await.expect("a socket");
    let mut seen = Vec::new();
    while !seen.ends_with(b"begun\r\n") {
        timeout(PATIENCE, socket.read_buf(&mut seen)).await.expect("in time").expect("an answer");
    }
    drop(socket);
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some("the client has left"));
}

#[tokio::test]
async fn an_answer_before_the_upload_is_done_reaches_its_client() {
    let engine = FakeEngine::new();
    engine.offer_value("early", json!({"status_code": 403}));
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "early", json!({"api_path": "early", "http_method": "POST"}));
    let body = vec![7; 20 * 1024 * 1024];
    assert_eq!(send(address, with_body("POST", "/early", "video/mp4", body.clone())).await.status, 403);
    assert_eq!(send(address, with_body("POST", "/nowhere", "video/mp4", body)).await.status, 404);
}

#[tokio::test]
async fn a_client_that_expects_to_be_told_is_told_when_its_body_is_wanted() {
    let engine = FakeEngine::new();
    engine.offer("post", |asked| async move { answer(json!({"body": asked.payload["body"]})) });
    let (http, address) = listening(&engine, json!({})).await;
    bind(&http, "post", json!({"api_path": "post", "http_method": "POST"}));
    let mut socket = TcpStream::connect(address).await.expect("it listens");
    let head = "POST /post HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
        expect: 100-continue\r\nconnection: close\r\n\r\n";
    socket.write_all(head.as_bytes()).await.expect("a socket");
    let mut told = [0; 25];
    timeout(PATIENCE, socket.read_exact(&mut told)).await.expect("in time").expect("an interim answer");
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"42").await.expect("a socket");
    let mut rest = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut rest)).await.expect("in time").expect("an answer");
    assert!(rest.starts_with("HTTP/1.1 200 OK") && rest.ends_with("\r\n\r\n42"), "{rest}");
}
