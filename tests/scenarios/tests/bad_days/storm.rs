//! A thousand workers that all lose their connection at one moment and come back at the next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::RawWorker;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::{beside, functions, until_functions, worker};

const WORKERS: usize = 1000;
const STORMS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// One of them: comes, offers its function and answers a call of it, as often as there are storms.
async fn come_and_go(url: String, n: usize, all: Arc<Barrier>) -> RawWorker {
    let id = format!("storm::{n}");
    let mut before: Option<RawWorker> = None;
    for storm in 0..STORMS {
        all.wait().await;
        let mut worker = RawWorker::connect(&url).await.unwrap_or_else(|lost| panic!("{n} in storm {storm}: {lost:?}"));
        // The engine has not noticed that the old connection is lost: half of them tell it, half leave that to it.
        let lost = before.take();
        if let Some(lost) = lost.as_ref().filter(|_| n.is_multiple_of(2)) {
            worker.say(&lost.reattachment()).await.expect("connected");
        }
        let about = json!({ "name": "storm", "pid": 1, "runtime": "raw" });
        worker.begin("engine::workers::register", &about).await.expect("connected");
        worker.register(&id).await.expect("connected");
        drop(lost);
        let call = worker.begin(&id, &json!({ "n": n })).await.expect("connected");
        let asked = worker.hear_call().await.expect("its own call");
        worker.answer(&asked, &json!(n)).await.expect("connected");
        assert_eq!(worker.answer_to(&call).await.expect("connected"), Ok(json!(n)));
        before = Some(worker);
    }
    before.expect("there was a storm")
}

/// The ids of those that are connected.
async fn listed(watching: &mut RawWorker) -> HashSet<Value> {
    let listed = watching.call("engine::workers::list", &json!({ "runtime": "raw" })).await.expect("connected");
    let listed = listed.expect("a list")["workers"].take();
    listed.as_array().expect("a list").iter().map(|worker| worker["id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_workers_that_come_back_at_once_are_all_there_with_their_functions() {
    let (rig, bystander) = beside("").await;
    let mut watching = worker(&rig).await;
    let all = Arc::new(Barrier::new(WORKERS));
    let mut storm = JoinSet::new();
    for n in 0..WORKERS {
        storm.spawn(come_and_go(rig.url(), n, Arc::clone(&all)));
    }
    let workers = storm.join_all().await;
    assert_eq!(functions(&mut watching, "storm::").await.len(), WORKERS);
    // The old connections of those who did not reattach end when the engine sees that.
    let deadline = Instant::now() + PATIENCE;
    while listed(&mut watching).await.len() > WORKERS {
        assert!(Instant::now() < deadline, "old connections stay");
    }
    let (listed, mut ids) = (listed(&mut watching).await, Vec::new());
    ids.extend(workers.iter().map(|worker| worker.registered["worker_id"].clone()));
    assert!(listed.len() == WORKERS && ids.iter().all(|id| listed.contains(id)), "each is there once");
    for worker in workers {
        worker.leave().await.expect("left");
    }
    until_functions(&mut watching, "storm::", &[]).await;
    bystander.noticed_nothing(&rig).await;
}
