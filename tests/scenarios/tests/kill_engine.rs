//! `kill -9` of the engine, fifty times, in the middle of writes: nothing that was acknowledged is lost.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use scenarios::{Lost, RawWorker};
use serde_json::{Value, json};
use test_rig::{Rig, eventually};
use tokio::sync::watch;
use tokio::task::JoinSet;

const KILLS: u64 = 50;

/// Of each kind.
const WRITERS: usize = 4;

/// Of each writer. Every one of them is written again and again.
const KEYS: u64 = 8;

/// Acknowledged writes of each kind in each of the engine's lives, at least.
const WRITES: u64 = 8;

const PATIENCE: Duration = Duration::from_secs(120);

const WORKERS: &str = "  - name: iii-state\n  - name: iii-stream\n    config: { port: 0 }\n  - name: iii-queue\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    State,
    Stream,
    Publish,
}

const KINDS: [Kind; 3] = [Kind::State, Kind::Stream, Kind::Publish];

/// What the writers and the subscriber go by.
#[derive(Clone)]
struct Stage {
    url: String,
    /// How many engines have begun to listen.
    lives: watch::Receiver<u64>,
    /// Until the last engine has been killed, and for a while after.
    writing: watch::Receiver<bool>,
    /// Acknowledged writes of each kind.
    acknowledged: Arc<watch::Sender<[u64; KINDS.len()]>>,
    /// Messages that were acknowledged, and those that have arrived.
    published: Arc<Mutex<HashSet<String>>>,
    arrived: Arc<watch::Sender<HashSet<String>>>,
}

impl Stage {
    /// A connection to an engine that is alive.
    async fn connect(&mut self) -> RawWorker {
        loop {
            let life = *self.lives.borrow_and_update();
            if let Ok(worker) = RawWorker::connect(&self.url).await {
                return worker;
            }
            let next = self.lives.wait_for(|now| *now != life).await.map(|life| *life);
            next.expect("another engine");
        }
    }

    fn is_writing(&self) -> bool {
        *self.writing.borrow()
    }
}

/// What one writer knows of one of its keys.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The last value that was acknowledged or read.
    at_least: u64,
    /// The last value that was sent.
    at_most: u64,
}

/// Numbers from a seed; how random they are does not matter.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

struct Writer {
    kind: Kind,
    name: String,
    stage: Stage,
    known: [Known; KEYS as usize],
    next: u64,
    dice: Dice,
}

impl Writer {
    /// Writes until the test is over, through every death of the engine.
    async fn run(mut self) {
        while self.stage.is_writing() {
            let mut engine = self.stage.connect().await;
            // Only the loss of the connection ends either.
            if self.check(&mut engine).await.is_ok() {
                let _ = self.write(&mut engine).await;
            }
        }
    }

    fn place(&self, key: u64) -> Value {
        let key = format!("{}-{key}", self.name);
        match self.kind {
            Kind::State => json!({ "scope": "kill", "key": key }),
            Kind::Stream => json!({ "stream_name": "kill", "group_id": self.name, "item_id": key }),
            Kind::Publish => json!({ "topic": "kill" }),
        }
    }

    /// Every key holds what was acknowledged, or what was sent afterwards.
    async fn check(&mut self, engine: &mut RawWorker) -> Result<(), Lost> {
        let function = match self.kind {
            Kind::State => "state::get",
            Kind::Stream => "stream::get",
            Kind::Publish => return Ok(()),
        };
        for key in 0..KEYS {
            let found = engine.call(function, &self.place(key)).await?.expect("read");
            let Known { at_least, at_most } = self.known[key as usize];
            let found = found["n"].as_u64().unwrap_or(0);
            assert!(
                (at_least..=at_most).contains(&found),
                "{:?} {} {key} is {found}; {at_least} was acknowledged, {at_most} was sent",
                self.kind,
                self.name
            );
            self.known[key as usize].at_least = found;
        }
        Ok(())
    }

    async fn write(&mut self, engine: &mut RawWorker) -> Result<(), Lost> {
        while self.stage.is_writing() {
            self.next += 1;
            let (n, key) = (self.next, self.next % KEYS);
            let value = json!({ "n": n, "by": self.name, "text": "x".repeat(self.dice.below(2000) as usize) });
            let mut request = self.place(key);
            let (function, name) = match self.kind {
                Kind::State => ("state::set", "value"),
                Kind::Stream => ("stream::set", "data"),
                Kind::Publish => ("iii::durable::publish", "data"),
            };
            request[name] = value;
            self.known[key as usize].at_most = n;
            let answer = engine.call(function, &request).await?;
            assert!(answer.is_ok(), "{function} is refused: {answer:?}");
            self.known[key as usize].at_least = n;
            if self.kind == Kind::Publish {
                let mut published = self.stage.published.lock().unwrap_or_else(PoisonError::into_inner);
                published.insert(format!("{}-{n}", self.name));
            }
            self.stage.acknowledged.send_modify(|counts| counts[self.kind as usize] += 1);
        }
        Ok(())
    }
}

/// Takes every message, in every life of the engine.
async fn subscribe(mut stage: Stage) {
    loop {
        let mut engine = stage.connect().await;
        let _ = take_messages(&mut engine, &stage).await;
    }
}

async fn take_messages(engine: &mut RawWorker, stage: &Stage) -> Result<(), Lost> {
    engine.register("kill::take").await?;
    let trigger = json!({
        "type": "registertrigger", "id": "kill", "trigger_type": "durable:subscriber", "function_id": "kill::take",
        "config": { "topic": "kill" },
    });
    engine.say(&trigger).await?;
    loop {
        let call = engine.hear_call().await?;
        let id = format!("{}-{}", call["data"]["by"].as_str().unwrap_or_default(), call["data"]["n"]);
        stage.arrived.send_if_modified(|arrived| arrived.insert(id));
        engine.answer(&call, &Value::Null).await?;
    }
}

/// Waits until this many engines have said that they listen. A connection to a port where nobody does might be answered
/// by itself.
fn wait_until_listening(rig: &Rig, lives: usize) {
    let address = format!("listening address=127.0.0.1:{}", rig.port());
    let up = eventually(PATIENCE, || (rig.log().matches(&address).count() >= lives).then_some(()));
    assert!(up.is_some(), "engine {lives} does not listen");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_lose_no_acknowledged_write_and_no_acknowledged_message() {
    let seed = std::env::var("III_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("III_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let mut rig = Rig::builder().workers(WORKERS).start_engine_only();
    let (life, lives) = watch::channel(1);
    let (writing_on, writing) = watch::channel(true);
    let (acknowledged, mut counts) = watch::channel([0; KINDS.len()]);
    let stage = Stage {
        url: rig.url(),
        lives,
        writing,
        acknowledged: Arc::new(acknowledged),
        published: Arc::default(),
        arrived: Arc::new(watch::Sender::new(HashSet::new())),
    };
    let mut writers = JoinSet::new();
    for kind in KINDS {
        for n in 0..WRITERS {
            let name = format!("{kind:?}-{n}");
            let (known, dice) = ([Known::default(); KEYS as usize], Dice(dice.below(u64::MAX)));
            writers.spawn(Writer { kind, name, stage: stage.clone(), known, next: 0, dice }.run());
        }
    }
    let subscriber = tokio::spawn(subscribe(stage.clone()));
    for kill in 1..=KILLS {
        let (before, more) = (*counts.borrow(), dice.below(800));
        let enough = |now: &[u64; KINDS.len()]| {
            let written = now.iter().zip(before).map(|(now, before)| now - before);
            written.clone().all(|written| written >= WRITES) && written.sum::<u64>() >= more
        };
        tokio::select! {
            waited = tokio::time::timeout(PATIENCE, counts.wait_for(enough)) => {
                drop(waited.expect("writes are acknowledged").expect("there are writers"));
            }
            ended = writers.join_next() => panic!("a writer ended: {ended:?}"),
        }
        tokio::task::block_in_place(|| {
            rig.kill_and_restart_engine();
            wait_until_listening(&rig, kill as usize + 1);
        });
        life.send_replace(kill + 1);
    }
    writing_on.send_replace(false);
    writers.join_all().await;
    // All acknowledged messages arrive, whatever became of the engine that took them.
    let published = stage.published.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut arrived = stage.arrived.subscribe();
    let all = tokio::time::timeout(PATIENCE, arrived.wait_for(|arrived| published.is_subset(arrived))).await.is_ok();
    let missing: Vec<String> = published.difference(&stage.arrived.borrow()).cloned().collect();
    assert!(all, "{} of {} messages did not arrive: {missing:?}", missing.len(), published.len());
    subscriber.abort();
    println!("acknowledged writes of {KINDS:?}: {:?}", *stage.acknowledged.borrow());
    assert!(!rig.log().contains("panicked"), "the engine panicked");
}
