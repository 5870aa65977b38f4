//! Values that are stored durably, and read.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::flow::{keep, registered};
use crate::peer::{Out, Peer, payload};
use crate::table::{Row, Target};

const WORKERS: &str = "  - name: iii-state\n";
const KEYS: u64 = 1000;
const IN_FLIGHT: [u64; 3] = [1, 16, 256];
const WARM_UP: Duration = Duration::from_millis(500);
const LASTS: Duration = Duration::from_secs(3);

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    let engine = Engine::with(program, WORKERS);
    let mut caller = Peer::connect(engine.port).await;
    registered(&mut caller, "state::list_groups").await;
    let value = payload(100);
    let set = |out: &mut Out, number: u64| {
        let key = number % KEYS;
        out.call(number, "state::set", &format!(r#"{{"scope":"load","key":"k{key}","value":{value}}}"#));
    };
    let get = |out: &mut Out, number: u64| {
        let key = number % KEYS;
        out.call(number, "state::get", &format!(r#"{{"scope":"load","key":"k{key}"}}"#));
    };
    for in_flight in IN_FLIGHT {
        keep(&mut caller, in_flight, WARM_UP, set).await;
        let (cpu, begun) = (engine.cpu(), Instant::now());
        let latencies = keep(&mut caller, in_flight, LASTS, set).await;
        let name = format!("state set 100 B, durable, {in_flight} in flight");
        let row = Row::new(&name, latencies, begun.elapsed(), engine.cpu() - cpu);
        rows.push(Row { target: (in_flight == 256).then_some(Target::CpuUs(15.0)), ..row });
    }
    for in_flight in IN_FLIGHT {
        keep(&mut caller, in_flight, WARM_UP, get).await;
        let (cpu, begun) = (engine.cpu(), Instant::now());
        let latencies = keep(&mut caller, in_flight, LASTS, get).await;
        let name = format!("state get 100 B, {in_flight} in flight");
        let row = Row::new(&name, latencies, begun.elapsed(), engine.cpu() - cpu);
        rows.push(Row { target: (in_flight == 256).then_some(Target::CpuUs(8.0)), ..row });
    }
}
