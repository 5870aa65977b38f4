//! Calls that are kept under way, and whether each was answered.

use std::time::{Duration, Instant};

use crate::peer::{Out, Peer, is_answer, number};

/// Waits until a call finds `function`: registrations are not acknowledged.
pub(crate) async fn registered(caller: &mut Peer, function: &str) {
    loop {
        caller.write(|out| out.call(0, function, "{}")).await;
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

/// Keeps `in_flight` calls under way for as long as `lasts`, the one with a number as `call` adds it; how long each
/// took.
pub(crate) async fn keep(
    caller: &mut Peer,
    in_flight: u64,
    lasts: Duration,
    call: impl Fn(&mut Out, u64),
) -> Vec<Duration> {
    let begun = Instant::now();
    let mut starts: Vec<Instant> = Vec::new();
    let mut latencies = Vec::new();
    let next = |starts: &mut Vec<Instant>, out: &mut Out| {
        starts.push(Instant::now());
        call(out, starts.len() as u64);
    };
    caller.write(|out| (0..in_flight).for_each(|_| next(&mut starts, out))).await;
    while latencies.len() < starts.len() {
        let goes_on = begun.elapsed() < lasts;
        let take = |text: &[u8], out: &mut Out| {
            if !is_answer(text) {
                return;
            }
            // Lost, or answered twice: then the numbers mean nothing.
            let number = number(text).filter(|number| *number > 0).expect("the number of a call");
            latencies.push(starts[usize::try_from(number).expect("small") - 1].elapsed());
            if goes_on {
                next(&mut starts, out);
            }
        };
        assert!(caller.each(take).await, "the engine closed the connection");
    }
    latencies
}
