//! Ten million calls, each answered once. Takes minutes.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::calls::echoing;
use crate::engine::Engine;
use crate::peer::{Out, is_answer, number};
use crate::table::{Row, Target};

const CALLS: usize = 10_000_000;
const IN_FLIGHT: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::start(program);
    let mut caller = echoing(&engine, 20).await;
    let call = |out: &mut Out, index: usize| out.call(index as u64 + 1, "load::echo", "{}");
    let mut answers = vec![0_u8; CALLS];
    let (mut sent, mut received) = (IN_FLIGHT, 0);
    let (cpu, begun) = (engine.cpu(), Instant::now());
    caller.write(|out| (0..IN_FLIGHT).for_each(|index| call(out, index))).await;
    while received < CALLS {
        let take = |answered: &[u8], out: &mut Out| {
            if !is_answer(answered) {
                return;
            }
            let number =
                number(answered).and_then(|number| usize::try_from(number).ok()).expect("the number of a call");
            answers[number - 1] = answers[number - 1].saturating_add(1);
            received += 1;
            if sent < CALLS {
                call(out, sent);
                sent += 1;
            }
        };
        match timeout(PATIENCE, caller.each(take)).await {
            Ok(true) => {}
            Ok(false) => panic!("the engine closed the connection"),
            Err(_) => break,
        }
    }
    let wrong = answers.iter().filter(|count| **count != 1).count();
    rows.push(Row {
        other: Some(("not answered exactly once", wrong as f64, "calls")),
        target: Some(Target::OtherAtMost(0.0)),
        ..Row::counted("10 million calls, 256 in flight", CALLS as u64, begun.elapsed(), engine.cpu() - cpu)
    });
}
