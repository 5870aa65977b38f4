//! In order, in turn, and never more than its share.

use std::time::Duration;

use tokio::sync::{Notify, mpsc::UnboundedReceiver};
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// The only binding of a function.
fn only(function: &str) -> Recipient {
    bound(function, function)
}

fn bound(binding: &str, function: &str) -> Recipient {
    Recipient { binding: binding.into(), function: function.into(), vm: None }
}

fn bound_in_a_vm(number: usize) -> Recipient {
    in_vm("vm", number)
}

fn in_vm(vm: &str, number: usize) -> Recipient {
    let number = number % 100;
    Recipient { vm: Some(vm.into()), ..bound(&format!("{vm} b{number}"), &format!("f{number}")) }
}

#[tokio::test]
async fn deliveries_begin_in_order_and_overlap() {
    let deliveries = Deliveries::new();
    let begun = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::new(tokio::sync::Barrier::new(101));
    for number in 0..100 {
        let (begun, all) = (Arc::clone(&begun), Arc::clone(&all));
        let work = async move {
            begun.lock().expect("no panic").push(number);
            all.wait().await;
        };
        let to = only(if number < 50 { "first" } else { "second" });
        deliveries.begin(&to, None, deliveries.room(1).expect("room"), work.boxed()).expect("room");
    }
    all.wait().await;
    assert_eq!(*begun.lock().expect("no panic"), (0..100).collect::<Vec<_>>());
}

/// Begins deliveries that never end, one after another, until one is dropped: how many began, and how many were accepted.
async fn fill(deliveries: &Deliveries, bytes: usize, to: impl Fn(usize) -> Recipient) -> (usize, usize) {
    let begun = Arc::new(AtomicU64::new(0));
    let mut accepted = 0;
    loop {
        let counted = Arc::clone(&begun);
        let work = async move {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        let room = deliveries.room(bytes).expect("room");
        if deliveries.begin(&to(accepted), None, room, work.boxed()).is_err() {
            break;
        }
        accepted += 1;
    }
    for _ in 0..accepted {
        tokio::task::yield_now().await;
    }
    (usize::try_from(begun.load(Ordering::Relaxed)).expect("a count"), accepted)
}

fn whole(limits: Limits) -> (usize, usize) {
    (limits.in_flight, limits.in_flight + limits.waiting)
}

async fn answers(deliveries: &Deliveries, to: &Recipient) {
    for _ in 0..1000 {
        let (done, wait) = tokio::sync::oneshot::channel();
        let work = async move {
            let _ = done.send(());
        };
        deliveries.begin(to, None, deliveries.room(1).expect("room"), work.boxed()).expect("room");
        timeout(DEADLINE, wait).await.expect("in time").expect("delivered");
    }
}

#[tokio::test]
async fn handlers_that_never_end_hold_up_a_bounded_number_of_deliveries() {
    let deliveries = Deliveries::new();
    let filled = fill(&deliveries, 1, |number| only(&format!("f{}", number % 100))).await;
    assert_eq!(filled, whole(ALL));
}

#[tokio::test]
async fn a_function_that_hangs_leaves_the_others_their_deliveries() {
    let deliveries = Deliveries::new();
    let hangs = |number: usize| bound(&format!("b{}", number % 10), "hangs");
    assert_eq!(fill(&deliveries, 1, hangs).await, whole(PER_FUNCTION));
    let (_, large) = fill(&deliveries, PER_BINDING.bytes / 4, |_| only("hangs with much")).await;
    assert_eq!(large, 4);
    answers(&deliveries, &only("answers")).await;
}

#[tokio::test]
async fn a_binding_that_hangs_leaves_the_others_of_its_function_their_deliveries() {
    let deliveries = Deliveries::new();
    assert_eq!(fill(&deliveries, 1, |_| bound("hangs", "f")).await, whole(PER_BINDING));
    answers(&deliveries, &bound("answers", "f")).await;
}

#[tokio::test]
async fn a_vms_worker_with_many_functions_that_hang_leaves_the_others_their_deliveries() {
    let deliveries = Deliveries::new();
    assert_eq!(fill(&deliveries, 1, bound_in_a_vm).await, whole(PER_VM));
    answers(&deliveries, &only("f1")).await;
    let deliveries = Deliveries::new();
    let (_, large) = fill(&deliveries, PER_VM.bytes / 4, bound_in_a_vm).await;
    assert_eq!(large, 4);
    answers(&deliveries, &only("f1")).await;
}

#[tokio::test]
async fn the_workers_of_many_vms_leave_the_others_theirs() {
    let deliveries = Deliveries::new();
    let (mut begun, mut accepted) = (0, 0);
    for vm in 0..6 {
        let filled = fill(&deliveries, 1, |number| in_vm(&format!("vm{vm}"), number)).await;
        (begun, accepted) = (begun + filled.0, accepted + filled.1);
    }
    assert_eq!((begun, accepted), whole(ALL_VMS));
    answers(&deliveries, &only("f")).await;
    let deliveries = Deliveries::new();
    let mut carried = 0;
    for vm in 0..6 {
        let (_, accepted) = fill(&deliveries, PER_VM.bytes / 8, |number| in_vm(&format!("vm{vm}"), number)).await;
        carried += accepted * (PER_VM.bytes / 8);
    }
    assert_eq!(carried, ALL_VMS.bytes);
    answers(&deliveries, &only("f")).await;
}

#[tokio::test]
async fn what_waits_for_a_busy_binding_follows_in_order_and_a_panic_ends_only_itself() {
    let deliveries = Deliveries::new();
    let (gate, done) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let begun = Arc::new(Mutex::new(Vec::new()));
    let count = 4 * PER_BINDING.in_flight;
    for number in 0..count {
        let (gate, done, begun) = (Arc::clone(&gate), Arc::clone(&done), Arc::clone(&begun));
        let work = async move {
            begun.lock().expect("no panic").push(number);
            if number + 1 == count {
                done.notify_one();
            }
            gate.acquire().await.expect("open").forget();
            assert!(number != 3, "one that panics");
        };
        deliveries.begin(&only("f"), None, deliveries.room(1).expect("room"), work.boxed()).expect("room");
    }
    gate.add_permits(count);
    done.notified().await;
    assert_eq!(*begun.lock().expect("no panic"), (0..count).collect::<Vec<_>>());
}

/// Handlers that tell when they begin, and end when they are let.
struct Handlers {
    deliveries: Deliveries,
    told: mpsc::UnboundedSender<&'static str>,
    begun: UnboundedReceiver<&'static str>,
    gate: Arc<Semaphore>,
}

impl Handlers {
    fn new() -> Self {
        let (told, begun) = mpsc::unbounded_channel();
        Self { deliveries: Deliveries::new(), told, begun, gate: Arc::new(Semaphore::new(0)) }
    }

    fn begin(&self, binding: &str, lane: Option<&str>, name: &'static str) -> Result<(), Overloaded> {
        let (told, gate) = (self.told.clone(), Arc::clone(&self.gate));
        let work = async move {
            let _ = told.send(name);
            gate.acquire().await.expect("open").forget();
        };
        let room = self.deliveries.room(1).expect("room");
        self.deliveries.begin(&bound(binding, "f"), lane, room, work.boxed())
    }

    async fn next(&mut self) -> &'static str {
        timeout(DEADLINE, self.begun.recv()).await.expect("in time").expect("a delivery")
    }
}

#[tokio::test]
async fn one_of_a_lane_begins_when_the_one_before_it_has_ended_and_no_other_lane_waits_for_it() {
    let mut handlers = Handlers::new();
    for (binding, lane, name) in [
        ("b", Some("x"), "x1"),
        ("b", Some("x"), "x2"),
        ("b", Some("y"), "y1"),
        ("b", Some("x"), "x3"),
        ("c", Some("x"), "another binding"),
        ("b", None, "of no lane"),
    ] {
        handlers.begin(binding, lane, name).expect("room");
    }
    let mut begun = Vec::new();
    for _ in 0..4 {
        begun.push(handlers.next().await);
    }
    assert_eq!(begun, ["x1", "y1", "another binding", "of no lane"]);
    assert!(handlers.begun.try_recv().is_err(), "x2 has begun before x1 has ended");
    handlers.gate.add_permits(4);
    assert_eq!(handlers.next().await, "x2");
    assert!(handlers.begun.try_recv().is_err(), "x3 has begun before x2 has ended");
    handlers.gate.add_permits(1);
    assert_eq!(handlers.next().await, "x3");
}

#[tokio::test]
async fn what_waits_in_a_lane_is_bounded_and_what_comes_later_is_dropped() {
    let mut handlers = Handlers::new();
    for _ in 0..=PER_LANE.waiting {
        handlers.begin("b", Some("x"), "early").expect("room");
    }
    handlers.begin("b", Some("x"), "late").expect_err("no room");
    handlers.begin("b", Some("y"), "another lane").expect("room");
    assert_eq!([handlers.next().await, handlers.next().await], ["early", "another lane"]);
    handlers.gate.add_permits(2);
    assert_eq!(handlers.next().await, "early");
    handlers.begin("b", Some("x"), "after").expect("room again");
    handlers.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    for _ in 2..=PER_LANE.waiting {
        assert_eq!(handlers.next().await, "early");
    }
    assert_eq!(handlers.next().await, "after");
}

#[tokio::test]
async fn large_messages_are_bounded_by_their_bytes() {
    let deliveries = Deliveries::new();
    let whole = deliveries.room(2 * MAX_BYTES).expect("room for one");
    assert!(matches!(deliveries.room(1), Err(Overloaded)));
    let (done, wait) = tokio::sync::oneshot::channel();
    let work = async move {
        let _ = done.send(());
    };
    deliveries.begin(&only("f"), None, whole, work.boxed()).expect("room");
    wait.await.expect("delivered");
    while deliveries.room(1).is_err() {
        tokio::task::yield_now().await;
    }
}
