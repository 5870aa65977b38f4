//! A thousand workers that all lose their connection at one moment and come back at the next.

use std::sync::Arc;

use scenarios::RawWorker;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::{beside, functions, worker};

const WORKERS: usize = 1000;
const STORMS: usize = 3;

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
    let listed = watching.call("engine::workers::list", &json!({})).await.expect("connected").expect("a list");
    let connected = |worker: &&Value| workers.iter().any(|one| one.registered["worker_id"] == worker["id"]);
    let listed = listed["workers"].as_array().expect("a list");
    assert_eq!(listed.iter().filter(connected).count(), WORKERS, "each is there once");
    for worker in workers {
        worker.leave().await.expect("left");
    }
    assert_eq!(functions(&mut watching, "storm::").await, [""; 0]);
    bystander.noticed_nothing(&rig).await;
}
