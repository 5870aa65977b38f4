//! Calls that are answered: few and many in flight, small and large.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::peer::{Peer, call, number, payload, register};
use crate::table::{Row, Table};

const SIZES: [(&str, usize); 3] = [("100 B", 100), ("10 kB", 10_000), ("1 MiB", 1 << 20)];
const IN_FLIGHT: [u64; 3] = [1, 16, 256];
const LASTS: Duration = Duration::from_secs(4);
const WARM_UP: Duration = Duration::from_secs(1);

/// Bytes in flight beyond which a case says nothing of the engine.
const MAX_BYTES: u64 = 32 << 20;

pub(crate) async fn measure(program: &Path, table: &mut Table) {
    for (name, bytes) in SIZES {
        for in_flight in IN_FLIGHT {
            if in_flight * bytes as u64 > MAX_BYTES {
                continue;
            }
            let target = match (bytes, in_flight) {
                (100, 256) => "≤ 7 µs",
                (10_000, 256) => "≤ 12 µs",
                (1_048_576, 16) => "≤ 500 µs",
                _ => "",
            };
            let engine = Engine::start(program);
            let row = pair(&engine, &format!("sync call {name}, {in_flight} in flight"), bytes, in_flight).await;
            table.push(Row { target: target.into(), ..row });
        }
    }
    let engine = Engine::start(program);
    table.push(crowd(&engine).await);
}

/// One caller, one callee.
async fn pair(engine: &Engine, name: &str, bytes: usize, in_flight: u64) -> Row {
    let mut callee = Peer::connect(engine.port).await;
    callee.send([register("load::echo")]).await;
    let serving = tokio::spawn(callee.serve(payload(bytes)));
    let mut caller = Peer::connect(engine.port).await;
    registered(&mut caller, "load::echo").await;
    run(&mut caller, "load::echo", bytes, in_flight, WARM_UP).await;
    let (cpu, begun) = (engine.cpu(), Instant::now());
    let latencies = run(&mut caller, "load::echo", bytes, in_flight, LASTS).await;
    let row = Row::new(name, latencies, begun.elapsed(), engine.cpu() - cpu);
    serving.abort();
    row
}

/// Fifty callers, fifty callees, each caller with five calls in flight to a callee of its own.
async fn crowd(engine: &Engine) -> Row {
    const PAIRS: usize = 50;
    let mut tasks = Vec::new();
    for pair in 0..PAIRS {
        let function = format!("load::echo{pair}");
        let mut callee = Peer::connect(engine.port).await;
        callee.send([register(&function)]).await;
        tasks.push(tokio::spawn(callee.serve(payload(100))));
    }
    let mut callers = Vec::new();
    for pair in 0..PAIRS {
        let mut caller = Peer::connect(engine.port).await;
        registered(&mut caller, &format!("load::echo{pair}")).await;
        callers.push((caller, format!("load::echo{pair}")));
    }
    let (cpu, begun) = (engine.cpu(), Instant::now());
    let running: Vec<_> = callers
        .into_iter()
        .map(|(mut caller, function)| tokio::spawn(async move { run(&mut caller, &function, 100, 5, LASTS).await }))
        .collect();
    let mut latencies = Vec::new();
    for task in running {
        latencies.extend(task.await.expect("no panic"));
    }
    let row = Row::new("50 callers × 50 callees, 100 B", latencies, begun.elapsed(), engine.cpu() - cpu);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    row
}

/// Waits until a call finds `function`: registrations are not acknowledged.
pub(crate) async fn registered(caller: &mut Peer, function: &str) {
    loop {
        caller.send([call(0, function, "{}")]).await;
        loop {
            let texts = caller.next().await;
            let answer = texts.iter().find(|text| text.contains("\"invocationresult\""));
            match answer {
                Some(answer) if answer.contains("function_not_found") => break,
                Some(_) => return,
                None => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Keeps `in_flight` calls under way for as long as `lasts`; how long each took.
async fn run(caller: &mut Peer, function: &str, bytes: usize, in_flight: u64, lasts: Duration) -> Vec<Duration> {
    let data = payload(bytes);
    let begun = Instant::now();
    let mut starts: Vec<Instant> = Vec::new();
    let mut latencies = Vec::new();
    let mut open = 0;
    let next = |starts: &mut Vec<Instant>| {
        starts.push(Instant::now());
        call(starts.len() as u64, function, &data)
    };
    let first: Vec<String> = (0..in_flight).map(|_| next(&mut starts)).collect();
    open += first.len();
    caller.send(first).await;
    while open > 0 {
        let texts = caller.next().await;
        assert!(!texts.is_empty(), "the engine closed the connection");
        let now = Instant::now();
        let mut answered = 0;
        for text in texts.iter().filter(|text| text.contains("\"invocationresult\"")) {
            // Lost, or answered twice: then the numbers mean nothing.
            let number = number(text).filter(|number| *number > 0).expect("the number of a call");
            latencies.push(now - starts[usize::try_from(number).expect("small") - 1]);
            answered += 1;
        }
        open -= answered;
        if begun.elapsed() < lasts {
            let more: Vec<String> = (0..answered).map(|_| next(&mut starts)).collect();
            open += more.len();
            caller.send(more).await;
        }
    }
    latencies
}
