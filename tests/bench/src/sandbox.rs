//! Sandboxes as an agent sees them: through the engine, from a connected worker.

use std::time::{Duration, Instant};

use engine_client::{Client, ClientConfig};
use serde_json::{Value, json};
use test_rig::Rig;

use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const ROUNDS: usize = 15;
const EXECS: usize = 200;
const WRITES: usize = 75;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn connect(rig: &Rig) -> Client {
    let client = Client::connect(ClientConfig { url: rig.url(), name: "bench".into(), description: None });
    client.connected(PATIENCE).await.expect("connected");
    client
}

pub(crate) async fn call(client: &Client, function: &str, request: Value) -> Value {
    let answer = client.call(function, &request, PATIENCE).await;
    let answer = answer.unwrap_or_else(|error| panic!("{function}: {error}"));
    answer.map_or(Value::Null, |answer| serde_json::from_str(answer.get()).expect("JSON"))
}

pub(crate) fn measure(report: &mut Report) {
    let rig = Rig::builder().sandboxes().env("III_LOG", "info,iii_daemon::machine=debug").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = connect(&rig).await;
        let run = json!({ "image": "python", "code": "print(2+2)" });
        // Image and template.
        call(&client, "sandbox::run", run.clone()).await;
        let folder = machine::folder();
        let recipe = Recipe { kit: &machine::kit(), root: None, folder: folder.path(), clone: true, port: None };
        machine::boot(&recipe).await;
        let (mut vm, mut created, mut first, mut runs) = (vec![], vec![], vec![], vec![]);
        let (mut execs, mut writes) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            vm.push(machine::boot(&recipe).await.1);
            let start = Instant::now();
            let id = call(&client, "sandbox::create", json!({ "image": "python" })).await["sandbox_id"].clone();
            created.push(start.elapsed());
            let echo = call(&client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["echo", "x"] })).await;
            assert_eq!(echo["stdout"], "x\n", "{echo}");
            first.push(start.elapsed());
            for _ in 0..EXECS / ROUNDS {
                let start = Instant::now();
                let done = call(&client, "sandbox::exec", json!({ "sandbox_id": id, "argv": ["true"] })).await;
                execs.push(start.elapsed());
                assert_eq!(done["exit_code"], 0, "{done}");
            }
            for number in 0..WRITES / ROUNDS {
                let start = Instant::now();
                let path = format!("/tmp/{number}");
                call(&client, "sandbox::fs::write", json!({ "sandbox_id": id, "path": path, "content": "x" })).await;
                writes.push(start.elapsed());
            }
            call(&client, "sandbox::stop", json!({ "sandbox_id": id, "wait": true })).await;
            let start = Instant::now();
            assert_eq!(call(&client, "sandbox::run", run.clone()).await["stdout"], "4\n");
            runs.push(start.elapsed());
        }
        let vm = Samples::from_durations(vm);
        let phases: Vec<Phases> = rig.log().lines().filter_map(Phases::of).collect();
        // Each round boots twice, for `create` and for `run`; one boot went before them.
        assert_eq!(phases.len(), 1 + 2 * ROUNDS, "boots in the daemon's log");
        let phases: Vec<&Phases> = phases.iter().skip(1).step_by(2).collect();
        let restored = Samples::from_ms(phases.iter().map(|phases| phases.running - phases.prepared));
        let adopted = Samples::from_ms(phases.iter().map(|phases| phases.adopted - phases.running));
        let own = phases.iter().zip(&created);
        let own = own.map(|(phases, whole)| whole.as_secs_f64() * 1000.0 - (phases.adopted - phases.prepared));
        let own = Samples::from_ms(own);
        let created = Samples::from_durations(created);
        report.row("sandbox::create → answer", created, Some(("bare VM, clone → answer", &vm)), "");
        report.row("… of it our own work between call and VM, and VM and answer", own, None, "≤ 60 ms");
        report.row("… of it the VM: restored from its template", restored, None, "");
        report.row("… of it the guest: disks mounted, identity taken", adopted, None, "");
        report.row(
            "sandbox::create → first byte of an exec",
            Samples::from_durations(first),
            Some(("bare VM", &vm)),
            "",
        );
        report.row("sandbox::run print(2+2)", Samples::from_durations(runs), Some(("bare VM", &vm)), "");
        report.row("exec of `true` in a warm sandbox", Samples::from_durations(execs), None, "≤ 15 ms");
        report.row("fs::write of a small file", Samples::from_durations(writes), None, "");
    });
}

/// Milliseconds since a boot was asked for, from the daemon's log.
struct Phases {
    prepared: f64,
    running: f64,
    adopted: f64,
}

impl Phases {
    fn of(line: &str) -> Option<Self> {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let micros: f64 = rest.split_whitespace().next()?.parse().ok()?;
            Some(micros / 1000.0)
        };
        Some(Self { prepared: field("prepared_us=")?, running: field("running_us=")?, adopted: field("adopted_us=")? })
    }
}
