//! Bad input and bad days: each has a defined outcome, and workers beside it do not notice.

mod claims;
mod config;
mod disk;
mod flood;
mod input;
mod redis;
mod storm;

use scenarios::{Bystander, RawWorker};
use serde_json::{Value, json};
use test_rig::Rig;

/// An engine with the given workers in its configuration, and a worker that must not notice anything.
async fn beside(workers: &str) -> (Rig, Bystander) {
    let rig = Rig::builder().workers(workers).start_engine_only();
    let bystander = Bystander::beside(&rig).await;
    (rig, bystander)
}

async fn worker(rig: &Rig) -> RawWorker {
    RawWorker::connect(&rig.url()).await.expect("connected")
}

fn code(answer: &Result<Value, Value>) -> Option<&str> {
    answer.as_ref().err().and_then(|error| error["code"].as_str())
}

/// The ids of all functions that workers offer and that begin with `prefix`.
async fn functions(worker: &mut RawWorker, prefix: &str) -> Vec<String> {
    let listed = worker.call("engine::functions::list", &json!({ "prefix": prefix })).await;
    let listed = listed.expect("connected").expect("a list");
    let functions = listed["functions"].as_array().expect("a list").iter();
    functions.map(|function| function["function_id"].as_str().expect("an id").to_owned()).collect()
}

/// Asks until the answer is `wanted`.
async fn until_functions(worker: &mut RawWorker, prefix: &str, wanted: &[&str]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let listed = functions(worker, prefix).await;
        if listed == wanted {
            return;
        }
        let count = listed.len();
        assert!(std::time::Instant::now() < deadline, "{count} functions of {prefix} are there, not {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
