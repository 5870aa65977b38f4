//! Ten functions found among ten thousand.

use std::path::Path;
use std::time::Instant;

use crate::engine::Engine;
use crate::flow::registered;
use crate::peer::{Peer, register};
use crate::table::{Row, Target};

const FUNCTIONS: usize = 10_000;
const CALLS: u64 = 2000;

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::start(program);
    let mut peer = Peer::connect(engine.port).await;
    // A thousand prefixes of ten functions each.
    peer.send((0..FUNCTIONS).map(|number| register(&format!("load{:03}::f{number}", number / 10)))).await;
    registered(&mut peer, "engine::workers::list").await;
    let (cpu, begun) = (engine.cpu(), Instant::now());
    let mut latencies = Vec::new();
    for number in 1..=CALLS {
        let start = Instant::now();
        peer.write(|out| out.call(number, "engine::functions::list", r#"{"prefix":"load500::"}"#)).await;
        let answer = loop {
            let texts = peer.next().await;
            if let Some(answer) = texts.into_iter().find(|text| text.contains("\"invocationresult\"")) {
                break answer;
            }
        };
        assert_eq!(answer.matches("load500::f").count(), 10, "{answer}");
        latencies.push(start.elapsed());
    }
    let name = "functions::list with a prefix, 10 of 10,000";
    let row = Row::new(name, latencies, begun.elapsed(), engine.cpu() - cpu);
    rows.push(Row { target: Some(Target::CpuUs(20.0)), ..row });
}
