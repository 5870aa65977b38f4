//! Sandboxes as an agent sees them: through the engine, from a connected worker.

use std::time::{Duration, Instant};

use engine_client::{Client, ClientConfig};
use serde_json::{Value, json};
use test_rig::Rig;

use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const ROUNDS: usize = 15;
const EXECS: usize = 200;
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
    let rig = Rig::builder().sandboxes().start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = connect(&rig).await;
        let run = json!({ "image": "python", "code": "print(2+2)" });
        // Image and template.
        call(&client, "sandbox::run", run.clone()).await;
        let folder = machine::folder();
        let recipe = Recipe { kit: &machine::kit(), root: None, folder: folder.path(), clone: true, port: None };
        machine::boot(&recipe).await;
        let (mut vm, mut created, mut first, mut runs, mut execs) = (vec![], vec![], vec![], vec![], vec![]);
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
            call(&client, "sandbox::stop", json!({ "sandbox_id": id, "wait": true })).await;
            let start = Instant::now();
            assert_eq!(call(&client, "sandbox::run", run.clone()).await["stdout"], "4\n");
            runs.push(start.elapsed());
        }
        let vm = Samples::from_durations(vm);
        let created = Samples::from_durations(created);
        let own = (created.median() - vm.median()).max(0.0);
        report.row("sandbox::create → answer", created, Some(("bare VM, clone → answer", &vm)), "");
        report.value("sandbox::create besides the bare VM (our own work, and adoption)", own, "≤ 60 ms");
        report.row(
            "sandbox::create → first byte of an exec",
            Samples::from_durations(first),
            Some(("bare VM", &vm)),
            "",
        );
        report.row("sandbox::run print(2+2)", Samples::from_durations(runs), Some(("bare VM", &vm)), "");
        report.row("exec of `true` in a warm sandbox", Samples::from_durations(execs), None, "≤ 15 ms");
    });
}
