//! Workers that come, register and go.

use std::path::Path;
use std::time::Instant;

use crate::engine::Engine;
use crate::flow::registered;
use crate::peer::{Peer, register};
use crate::table::Row;

const WORKERS: usize = 100;
const FUNCTIONS: usize = 100;
const COMING: usize = 1000;

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::start(program);
    let mut peers = Vec::new();
    for _ in 0..WORKERS {
        peers.push(Peer::connect(engine.port).await);
    }
    let (cpu, begun) = (engine.cpu(), Instant::now());
    for (worker, peer) in peers.iter_mut().enumerate() {
        peer.send((0..FUNCTIONS).map(|number| register(&format!("load{worker}::f{number}")))).await;
    }
    for peer in &mut peers {
        registered(peer, "engine::workers::list").await;
    }
    let count = (WORKERS * FUNCTIONS) as u64;
    rows.push(Row::counted("registration of a function, 100 workers", count, begun.elapsed(), engine.cpu() - cpu));
    drop(peers);

    let engine = Engine::start(program);
    let (cpu, begun) = (engine.cpu(), Instant::now());
    for _ in 0..COMING {
        drop(Peer::connect(engine.port).await);
    }
    rows.push(Row::counted("a worker connects and leaves", COMING as u64, begun.elapsed(), engine.cpu() - cpu));
}
