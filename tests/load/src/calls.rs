//! Calls that are answered: few and many in flight, small and large.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::flow::{keep, registered};
use crate::peer::{Peer, payload, register};
use crate::table::{Row, Target};

const SIZES: [(&str, usize); 3] = [("100 B", 100), ("10 kB", 10_000), ("1 MiB", 1 << 20)];
const IN_FLIGHT: [u64; 3] = [1, 16, 256];
const LASTS: Duration = Duration::from_secs(4);
const WARM_UP: Duration = Duration::from_secs(1);

/// Bytes in flight beyond which a case says nothing of the engine.
const MAX_BYTES: u64 = 32 << 20;

const FUNCTION: &str = "load::echo";

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    for (name, bytes) in SIZES {
        for in_flight in IN_FLIGHT {
            if in_flight * bytes as u64 > MAX_BYTES {
                continue;
            }
            let target = match (bytes, in_flight) {
                (100, 256) => Some(Target::CpuUs(7.0)),
                (10_000, 256) => Some(Target::CpuUs(12.0)),
                (1_048_576, 16) => Some(Target::CpuUs(500.0)),
                _ => None,
            };
            let engine = Engine::start(program);
            let mut caller = echoing(&engine, bytes).await;
            run(&mut caller, bytes, in_flight, WARM_UP).await;
            let (cpu, begun) = (engine.cpu(), Instant::now());
            let latencies = run(&mut caller, bytes, in_flight, LASTS).await;
            let name = format!("sync call {name}, {in_flight} in flight");
            let row = Row::new(&name, latencies, begun.elapsed(), engine.cpu() - cpu);
            rows.push(Row { target, ..row });
        }
    }
    rows.push(crowd(&Engine::start(program)).await);
}

/// A caller, and elsewhere a callee that answers with `bytes` bytes for as long as the engine runs.
pub(crate) async fn echoing(engine: &Engine, bytes: usize) -> Peer {
    let mut callee = Peer::connect(engine.port).await;
    callee.send([register(FUNCTION)]).await;
    tokio::spawn(callee.serve(payload(bytes)));
    let mut caller = Peer::connect(engine.port).await;
    registered(&mut caller, FUNCTION).await;
    caller
}

pub(crate) async fn run(caller: &mut Peer, bytes: usize, in_flight: u64, lasts: Duration) -> Vec<Duration> {
    let data = payload(bytes);
    keep(caller, in_flight, lasts, |out, number| out.call(number, FUNCTION, &data)).await
}

/// Fifty callers, fifty callees, each caller with five calls in flight to a callee of its own.
async fn crowd(engine: &Engine) -> Row {
    const PAIRS: usize = 50;
    for pair in 0..PAIRS {
        let mut callee = Peer::connect(engine.port).await;
        callee.send([register(&format!("load::echo{pair}"))]).await;
        tokio::spawn(callee.serve(payload(100)));
    }
    let mut callers = Vec::new();
    for pair in 0..PAIRS {
        let mut caller = Peer::connect(engine.port).await;
        registered(&mut caller, &format!("load::echo{pair}")).await;
        callers.push((caller, format!("load::echo{pair}")));
    }
    let data = payload(100);
    let (cpu, begun) = (engine.cpu(), Instant::now());
    let running: Vec<_> = callers
        .into_iter()
        .map(|(mut caller, function)| {
            let data = data.clone();
            tokio::spawn(
                async move { keep(&mut caller, 5, LASTS, |out, number| out.call(number, &function, &data)).await },
            )
        })
        .collect();
    let mut latencies = Vec::new();
    for task in running {
        latencies.extend(task.await.expect("no panic"));
    }
    Row::new("50 callers × 50 callees, 100 B", latencies, begun.elapsed(), engine.cpu() - cpu)
}
