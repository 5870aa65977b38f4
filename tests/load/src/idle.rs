//! What an engine and a worker cost that do nothing.

use std::path::Path;
use std::time::Duration;

use crate::engine::Engine;
use crate::peer::Peer;
use crate::table::{Row, Table};

const WORKERS: u64 = 500;

pub(crate) async fn measure(program: &Path, table: &mut Table) {
    let engine = Engine::start(program);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = engine.memory_kib("VmRSS");
    let mut peers = Vec::new();
    for _ in 0..WORKERS {
        peers.push(Peer::connect(engine.port).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (engine.memory_kib("VmRSS") - alone) as f64 / WORKERS as f64;
    let row = |name: &str, other: String, target: &str| Row {
        name: name.into(),
        other,
        target: target.into(),
        ..Row::default()
    };
    table.push(row("idle engine", format!("{:.1} MiB", alone as f64 / 1024.0), "≤ 30 MiB"));
    table.push(row("idle worker", format!("{each:.1} KiB"), "≤ 64 KiB"));
}
