//! Calls that nobody waits for, to a worker that keeps up and to one that does not.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::flow::registered;
use crate::peer::{Peer, payload, register};
use crate::table::{Row, Target};

const CALLS: u64 = 200_000;
const BATCH: u64 = 100;
const FLOOD: Duration = Duration::from_secs(10);

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    rows.push(keeps_up(&Engine::start(program)).await);
    rows.push(flood(&Engine::start(program)).await);
}

fn call(function: &str, data: &str) -> String {
    format!(r#"{{"type":"invokefunction","function_id":"{function}","data":{data},"action":{{"type":"void"}}}}"#)
}

async fn keeps_up(engine: &Engine) -> Row {
    let mut callee = Peer::connect(engine.port).await;
    callee.send([register("load::sink")]).await;
    let counting = tokio::spawn(async move {
        let mut seen = 0;
        while seen < CALLS {
            seen += callee.next().await.iter().filter(|text| text.contains("\"invokefunction\"")).count() as u64;
        }
    });
    let mut caller = Peer::connect(engine.port).await;
    settle(&mut caller).await;
    let data = payload(100);
    let (cpu, begun) = (engine.cpu(), Instant::now());
    for _ in 0..CALLS / BATCH {
        caller.send((0..BATCH).map(|_| call("load::sink", &data))).await;
    }
    counting.await.expect("no panic");
    Row::counted("void call 100 B", CALLS, begun.elapsed(), engine.cpu() - cpu)
}

/// Ten seconds of calls to a worker that reads what has arrived ten times a second.
async fn flood(engine: &Engine) -> Row {
    let mut callee = Peer::connect(engine.port).await;
    callee.send([register("load::slow")]).await;
    let reading = tokio::spawn(async move {
        loop {
            if callee.next().await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut caller = Peer::connect(engine.port).await;
    settle(&mut caller).await;
    let data = payload(1000);
    let (begun, mut sent) = (Instant::now(), 0_u64);
    while begun.elapsed() < FLOOD {
        let batch = caller.send((0..BATCH).map(|_| call("load::slow", &data)));
        if tokio::time::timeout(FLOOD, batch).await.is_err() {
            break;
        }
        sent += BATCH;
    }
    reading.abort();
    Row {
        name: "10 s flood of void calls to a slow worker".into(),
        per_second: Some(sent as f64 / begun.elapsed().as_secs_f64()),
        other: Some(("peak RSS", engine.memory_kib("VmHWM") as f64 / 1024.0, "MiB")),
        target: Some(Target::OtherAtMost(200.0)),
        ..Row::default()
    }
}

/// Waits until what was registered before is known, without calling it.
async fn settle(caller: &mut Peer) {
    registered(caller, "engine::functions::list").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
}
