//! Random lives of one queue: messages come, deliveries end well or badly, the clock jumps, the process dies. Tables and
//! window are the real ones, driven without tasks.

use std::collections::{BTreeMap, BTreeSet};

use engine_builtin::Trace;
use engine_store::Store;
use proptest::prelude::*;

use crate::delivery::{Backoff, Delivery, Order};
use crate::message::{Message, QueueId};
use crate::store::tables;
use crate::store::window::{Budget, Window};

#[derive(Debug, Clone)]
enum Step {
    /// In a group, if it is fifo.
    Push(u8),
    Deliver,
    /// One of those in flight.
    End {
        which: usize,
        well: bool,
    },
    Write {
        fails: bool,
    },
    Tick(u64),
    Die,
    Redrive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_u8).prop_map(Step::Push),
        6 => Just(Step::Deliver),
        6 => (any::<usize>(), prop::bool::weighted(0.6)).prop_map(|(which, well)| Step::End { which, well }),
        4 => prop::bool::weighted(0.1).prop_map(|fails| Step::Write { fails }),
        2 => (1..5000_u64).prop_map(Step::Tick),
        1 => Just(Step::Die),
        1 => Just(Step::Redrive),
    ];
    prop::collection::vec(step, 1..150)
}

/// One queue, and what ought to be true of it.
struct World {
    store: Store,
    queue: QueueId,
    delivery: Delivery,
    window: Window,
    now_ms: u64,
    in_flight: BTreeMap<u64, Message>,
    pushed: BTreeSet<String>,
    succeeded: BTreeSet<String>,
    /// Of each group, the messages in the order in which they came; those at the front are delivered first.
    groups: BTreeMap<String, Vec<String>>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new(order: Order, concurrency: usize, max_attempts: u32) -> Self {
        let backoff = Backoff::Exponential;
        let delivery =
            Delivery { order, max_attempts, concurrency, backoff_ms: 1000, backoff, delay_ms: 0, timeout_ms: None };
        Self {
            store: Store::in_memory().expect("a store"),
            queue: QueueId::Named("q".into()),
            window: Window::new(delivery.clone(), Budget::default()),
            delivery,
            now_ms: 1_000_000,
            in_flight: BTreeMap::new(),
            pushed: BTreeSet::new(),
            succeeded: BTreeSet::new(),
            groups: BTreeMap::new(),
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Push(group) => self.push(*group),
            Step::Deliver => self.deliver(),
            Step::End { which, well } => self.end(*which, *well),
            Step::Write { fails } => self.write(*fails),
            Step::Tick(ms) => self.now_ms += ms,
            Step::Die => {
                self.window = Window::new(self.delivery.clone(), Budget::default());
                self.in_flight.clear();
            }
            Step::Redrive => self.redrive(),
        }
    }

    fn push(&mut self, group: u8) {
        let mut message = Message::new("f", serde_json::value::RawValue::NULL.to_owned(), Trace::default());
        if self.delivery.order == Order::Fifo {
            let group = group.to_string();
            self.groups.entry(group.clone()).or_default().push(message.id.clone());
            message.group = Some(group);
        }
        self.pushed.insert(message.id.clone());
        let queue = self.queue.clone();
        let push = self.store.write(move |writing| tables::push(writing, &queue, &message));
        self.runtime.block_on(push).expect("stored");
        self.window.wake();
    }

    fn load(&mut self) {
        let Some(room) = self.window.room(self.now_ms) else { return };
        let groups = self.window.open_groups();
        let loaded = self.store.read(|reading| {
            let known = |seq| self.window.is_known(seq);
            let from = self.window.ready_from();
            tables::load(reading, &self.queue, &known, &groups, from, self.now_ms, room)
        });
        self.window.load(loaded.expect("read"));
    }

    fn deliver(&mut self) {
        self.load();
        while let Some((seq, message)) = self.window.next() {
            assert!(message.due_ms <= self.now_ms, "before its time");
            assert!(message.attempts < self.delivery.max_attempts, "more often than allowed");
            if let Some(group) = &message.group {
                let ahead = self.groups[group].first();
                assert_eq!(ahead, Some(&message.id), "of group {group}, out of order");
            }
            assert!(self.in_flight.insert(seq, message).is_none(), "in flight already");
        }
        assert!(self.in_flight.len() <= self.delivery.in_flight(), "too many in flight");
    }

    fn end(&mut self, which: usize, well: bool) {
        let Some(seq) = self.in_flight.keys().nth(which % self.in_flight.len().max(1)).copied() else { return };
        let message = self.in_flight.remove(&seq).expect("in flight");
        let gives_up = !well && message.attempts + 1 >= self.delivery.max_attempts;
        if well {
            self.succeeded.insert(message.id.clone());
        }
        // The next of its group may follow at once.
        if (well || gives_up)
            && let Some(group) = &message.group
        {
            self.groups.get_mut(group).expect("a group").retain(|id| *id != message.id);
        }
        self.window.ended(self.now_ms, seq, if well { Ok(()) } else { Err("no".to_owned()) });
    }

    fn write(&mut self, fails: bool) {
        let Some(batch) = self.window.batch() else { return };
        if fails {
            self.window.not_written();
            return;
        }
        let queue = self.queue.clone();
        let settle = self.store.write(move |writing| tables::settle(writing, &queue, &batch));
        self.runtime.block_on(settle).expect("stored");
        self.window.written();
    }

    /// Ends that are not on disk are forgotten when the process dies: writes them before, so that the model of the
    /// groups' order holds. What is in flight is lost all the same.
    fn die_orderly(&mut self) {
        while !self.in_flight.is_empty() || !self.window.is_settled() {
            let before = self.in_flight.len();
            self.write(false);
            self.in_flight.pop_first();
            if before == 0 && self.in_flight.is_empty() {
                break;
            }
        }
    }

    fn redrive(&mut self) {
        let until = self.store.read(|reading| tables::newest_dead(reading, "q")).expect("read");
        let Some(until) = until else { return };
        let dead = self.store.read(|reading| tables::dead_messages(reading, "q", 0, 1000)).expect("read");
        // They come back at the end of their groups, oldest first.
        for dead in dead.into_iter().rev() {
            if let Some(group) = dead.message.group {
                self.groups.entry(group).or_default().push(dead.message.id);
            }
        }
        let redrive = self.store.write(move |writing| tables::redrive(writing, "q", until));
        self.runtime.block_on(redrive).expect("stored");
        self.window.wake();
    }

    /// Delivers everything, well, and looks whether nothing was lost.
    fn finish(mut self) {
        for _ in 0..10_000 {
            self.deliver();
            while !self.in_flight.is_empty() {
                self.end(0, true);
            }
            self.write(false);
            self.now_ms += 3_600_000;
            let left = self.store.read(|reading| tables::depth(reading, "q")).expect("read");
            if left == 0 {
                break;
            }
        }
        assert_eq!(self.store.read(|reading| tables::depth(reading, "q")).expect("read"), 0, "some are stuck");
        let dead = self.store.read(|reading| tables::dead_messages(reading, "q", 0, 1000)).expect("read");
        assert_eq!(dead.len() as u64, self.store.read(|reading| tables::dead_count(reading, "q")).expect("read"));
        assert!(dead.windows(2).all(|pair| pair[0].failed_at_ms >= pair[1].failed_at_ms), "newest first");
        let dead: BTreeSet<String> = dead.into_iter().map(|dead| dead.message.id).collect();
        for id in &self.pushed {
            assert!(self.succeeded.contains(id) || dead.contains(id), "{id} was lost");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_message_of_a_standard_queue_is_lost(steps in steps(), concurrency in 1..5_usize, attempts in 1..4_u32) {
        let mut world = World::new(Order::Standard, concurrency, attempts);
        for step in &steps {
            world.take(step);
        }
        world.finish();
    }

    #[test]
    fn groups_keep_their_order_over_retries_and_deaths(steps in steps(), attempts in 1..4_u32) {
        let mut world = World::new(Order::Fifo, 1, attempts);
        for step in &steps {
            if matches!(step, Step::Die) {
                world.die_orderly();
            }
            world.take(step);
        }
        world.finish();
    }
}

#[test]
fn a_flood_stays_in_the_store() {
    let mut world = World::new(Order::Standard, 2, 3);
    for _ in 0..3000 {
        world.push(0);
    }
    world.deliver();
    assert_eq!(world.in_flight.len(), 2);
    assert!(!world.window.is_known(200), "only a window of it is in memory");
    world.finish();
}
