//! What an engine and a worker cost that do nothing.

use std::path::Path;
use std::time::Duration;

use crate::engine::Engine;
use crate::peer::Peer;
use crate::table::{Row, Target};

const WORKERS: u64 = 500;

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::start(program);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = engine.memory_kib("VmRSS");
    let mut peers = Vec::new();
    for _ in 0..WORKERS {
        peers.push(Peer::connect(engine.port).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (engine.memory_kib("VmRSS") - alone) as f64 / WORKERS as f64;
    let row = |name: &str, size: f64, unit: &'static str, most: f64| Row {
        name: name.into(),
        other: Some(("RSS", size, unit)),
        target: Some(Target::OtherAtMost(most)),
        ..Row::default()
    };
    rows.push(row("idle engine", alone as f64 / 1024.0, "MiB", 30.0));
    rows.push(row("idle worker", each, "KiB", 64.0));
}
