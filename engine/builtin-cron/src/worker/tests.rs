//! The worker with an engine that is pretended, a clock that is set, and locks in a real Redis.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use engine_builtin::{Answer, ChannelRef, EngineApi, Invocation, PipeReader, PipeWriter, Stats};
use futures_util::FutureExt;
use test_rig::TestRedis;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::*;
use crate::lock::Lock;

const PATIENCE: Duration = Duration::from_secs(60);

/// Hands every call to the test, which answers it.
struct FakeEngine {
    calls: mpsc::UnboundedSender<Incoming>,
}

struct Incoming {
    function: String,
    data: Value,
    answer: oneshot::Sender<Answer>,
}

impl Incoming {
    fn done(self) -> Value {
        let _ = self.answer.send(Ok(None));
        self.data
    }
}

impl EngineApi for FakeEngine {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        let (answer, answered) = oneshot::channel();
        let data = serde_json::from_str(invocation.data.get()).expect("JSON");
        let _ = self.calls.send(Incoming { function: invocation.function_id, data, answer });
        async { answered.await.unwrap_or(Ok(None)) }.boxed()
    }

    fn knows(&self, _: &str) -> bool {
        true
    }

    fn pipe_to_worker(&self, _: usize) -> (PipeWriter, ChannelRef) {
        panic!("cron needs no channel")
    }

    fn pipe_from_worker(&self, _: usize) -> (ChannelRef, PipeReader) {
        panic!("cron needs no channel")
    }

    fn withdraw(&self, _: &engine_builtin::ChannelRef) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn version(&self) -> &'static str {
        "0"
    }
}

/// Goes with tokio's clock, which tests pause, and can be set.
struct FakeClock {
    origin: DateTime<Utc>,
    started: Instant,
    set_by: Mutex<TimeDelta>,
}

impl Clock for FakeClock {
    fn now(&self) -> DateTime<Utc> {
        let passed = TimeDelta::from_std(self.started.elapsed()).expect("not that long");
        self.origin + passed + *self.set_by.lock().expect("no panic")
    }
}

fn clock(time: &str) -> Arc<FakeClock> {
    let origin = time.parse().expect("a time");
    Arc::new(FakeClock { origin, started: Instant::now(), set_by: Mutex::default() })
}

async fn cron(settings: Value, clock: Arc<dyn Clock>) -> (Cron, mpsc::UnboundedReceiver<Incoming>) {
    let (calls, incoming) = mpsc::unbounded_channel();
    (Cron::new(Arc::new(FakeEngine { calls }), settings, clock).await.expect("a worker"), incoming)
}

fn binding(id: &str, config: Value) -> Binding {
    Binding {
        id: id.into(),
        trigger_type: "cron".into(),
        function_id: "report::send".into(),
        config,
        owner: None,
        vm: None,
    }
}

fn every(expression: &str) -> Value {
    json!({ "expression": expression })
}

fn redis_at(url: &str) -> Value {
    json!({ "adapter": { "name": "redis", "config": { "redis_url": url } } })
}

async fn next(calls: &mut mpsc::UnboundedReceiver<Incoming>) -> Incoming {
    tokio::time::timeout(Duration::from_secs(100_000_000), calls.recv())
        .await
        .expect("a call in time")
        .expect("a worker")
}

/// Real time: for tests with a real Redis.
async fn soon(calls: &mut mpsc::UnboundedReceiver<Incoming>) -> Incoming {
    tokio::time::timeout(PATIENCE, calls.recv()).await.expect("a call in time").expect("a worker")
}

#[tokio::test(start_paused = true)]
async fn a_job_is_called_at_each_of_its_times_with_what_the_contract_says() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:30Z")).await;
    cron.bind(binding("nightly", every("0 */15 * * * *"))).expect("bound");
    let first = next(&mut calls).await;
    assert_eq!(first.function, "report::send");
    assert_eq!(
        first.done(),
        json!({
            "trigger": "cron", "job_id": "nightly",
            "scheduled_time": "2026-03-01T10:15:00+00:00", "actual_time": "2026-03-01T10:15:00+00:00",
        })
    );
    assert_eq!(next(&mut calls).await.done()["scheduled_time"], "2026-03-01T10:30:00+00:00");
    cron.unbind("cron", "nightly");
    cron.stop().await;
    drop(cron);
    assert!(calls.recv().await.is_none(), "a job that was removed is not called again");
}

#[tokio::test(start_paused = true)]
async fn a_slow_function_skips_the_times_it_took() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:30Z")).await;
    cron.bind(binding("a", every("0 * * * * *"))).expect("bound");
    let slow = next(&mut calls).await;
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert!(calls.try_recv().is_err(), "called while it runs");
    slow.done();
    assert_eq!(next(&mut calls).await.done()["scheduled_time"], "2026-03-01T10:04:00+00:00");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_registered_again_is_replaced_and_does_not_overlap_with_itself() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:00Z")).await;
    cron.bind(binding("a", every("* * * * * *"))).expect("bound");
    let running = next(&mut calls).await;
    cron.bind(binding("a", every("30 * * * * *"))).expect("bound");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(calls.try_recv().is_err(), "called while it runs");
    running.done();
    let times = [next(&mut calls).await.done(), next(&mut calls).await.done()];
    assert_eq!(
        times.map(|call| call["scheduled_time"].clone()),
        ["2026-03-01T10:02:30+00:00", "2026-03-01T10:03:30+00:00"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_noticed_within_a_minute() {
    let clock = clock("2026-03-01T10:00:00Z");
    let (cron, mut calls) = cron(Value::Null, Arc::clone(&clock) as Arc<dyn Clock>).await;
    cron.bind(binding("noon", every("0 0 12 * * *"))).expect("bound");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = Instant::now();
    *clock.set_by.lock().expect("no panic") = TimeDelta::hours(2);
    assert_eq!(next(&mut calls).await.done()["scheduled_time"], "2026-03-01T12:00:00+00:00");
    assert!(before.elapsed() <= crate::MAX_SLEEP);
    *clock.set_by.lock().expect("no panic") = TimeDelta::zero();
    assert_eq!(next(&mut calls).await.done()["scheduled_time"], "2026-03-01T12:00:00+00:00", "it is noon again");
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_says_no_or_fails_skips_the_run() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:00Z")).await;
    cron.bind(binding("a", json!({ "expression": "0 * * * * *", "condition_function_id": "is::open" })))
        .expect("bound");
    let answers =
        [Ok(serde_json::value::RawValue::from_string("false".into()).ok()), Err(ErrorBody::new("x", "y")), Ok(None)];
    for answer in answers {
        let asked = next(&mut calls).await;
        assert_eq!(asked.function, "is::open");
        assert_eq!(asked.data["job_id"], "a");
        let _ = asked.answer.send(answer);
    }
    let call = next(&mut calls).await;
    assert_eq!(
        (call.function.as_str(), &call.data["scheduled_time"]),
        ("report::send", &json!("2026-03-01T10:03:00+00:00"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_function_that_fails_is_called_again_at_the_next_time() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:00Z")).await;
    cron.bind(binding("a", every("0 * * * * *"))).expect("bound");
    let _ = next(&mut calls).await.answer.send(Err(ErrorBody::new("function_not_found", "gone")));
    assert_eq!(next(&mut calls).await.done()["scheduled_time"], "2026-03-01T10:02:00+00:00");
}

#[tokio::test]
async fn a_trigger_without_a_good_expression_is_refused_with_the_reason() {
    let (cron, _calls) = cron(Value::Null, Arc::new(SystemClock)).await;
    for (config, why) in [
        (Value::Null, "has no `expression`"),
        (json!({ "expression": null }), "has no `expression`"),
        (json!({ "expression": 5 }), "invalid type: integer `5`"),
        (every("* * *"), "`* * *` has 3 fields"),
        (every("0 0 0 32 * *"), "`32` is no day of month"),
    ] {
        let error = cron.bind(binding("a", config)).expect_err("refused");
        assert_eq!(error.code, "trigger_registration_failed");
        assert!(error.message.contains(why), "{}", error.message);
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_a_job_in_the_midst_of_a_run() {
    let (cron, mut calls) = cron(Value::Null, clock("2026-03-01T10:00:00Z")).await;
    cron.bind(binding("a", every("* * * * * *"))).expect("bound");
    let running = next(&mut calls).await;
    cron.stop().await;
    assert!(running.answer.is_closed());
}

#[tokio::test]
async fn two_engines_with_one_redis_run_a_job_once_at_each_time() {
    let redis = TestRedis::start();
    let (first, mut calls) = cron(redis_at(&redis.url()), Arc::new(SystemClock)).await;
    let (second, mut others) = cron(redis_at(&redis.url()), Arc::new(SystemClock)).await;
    for cron in [&first, &second] {
        cron.bind(binding("a", every("* * * * * *"))).expect("bound");
    }
    let mut times = Vec::new();
    while times.len() < 4 {
        let call = tokio::select! {
            call = soon(&mut calls) => call,
            call = soon(&mut others) => call,
        };
        times.push(call.done()["scheduled_time"].as_str().expect("a time").to_owned());
    }
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_lock_in_redis_is_held_while_its_job_runs_and_no_longer() {
    let redis = TestRedis::start();
    let mut locks = RedisLocks::connect(&redis.url()).await.expect("connected");
    locks.ttl = Duration::from_millis(300);
    let due = Utc::now();
    let lock = locks.take("a", due).await.expect("asked").expect("free");
    let long = async {
        // Several lifetimes of the lock.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        locks.take("a", due + TimeDelta::seconds(1)).await.expect("asked").is_none()
    };
    assert!(lock.held_during(long).await, "the lock was free while its job ran");
    assert!(locks.take("a", due + TimeDelta::seconds(2)).await.expect("asked").is_some(), "the lock was not released");
    assert!(locks.take("a", due).await.expect("asked").is_none(), "a time that has passed is not run");
}

#[tokio::test]
async fn a_lock_that_has_become_another_engines_is_not_released() {
    let redis = TestRedis::start();
    let locks = RedisLocks::connect(&redis.url()).await.expect("connected");
    let mut connection =
        redis::Client::open(redis.url()).expect("a url").get_multiplexed_async_connection().await.expect("connected");
    let lock = locks.take("a", Utc::now()).await.expect("asked").expect("free");
    let steal = redis::cmd("SET").arg("cron_lock:a").arg("theirs").to_owned();
    lock.held_during(async { steal.exec_async(&mut connection.clone()).await.expect("stolen") }).await;
    let token: String = redis::cmd("GET").arg("cron_lock:a").query_async(&mut connection).await.expect("a token");
    assert_eq!(token, "theirs");
}

#[tokio::test]
async fn jobs_go_on_with_another_adapter_and_one_that_fails_changes_nothing() {
    let redis = TestRedis::start();
    let (cron, mut calls) = cron(Value::Null, Arc::new(SystemClock)).await;
    cron.bind(binding("a", every("* * * * * *"))).expect("bound");
    soon(&mut calls).await.done();
    let unreachable = redis_at("redis://127.0.0.1:1");
    assert!(cron.apply(unreachable).await.expect_err("nobody there").to_string().contains("redis_url"));
    assert!(cron.apply(json!({ "adapter": { "name": "etcd" } })).await.is_err());
    soon(&mut calls).await.done();
    cron.apply(redis_at(&redis.url())).await.expect("applied");
    while redis_has_no_tick(&redis.url()).await {
        soon(&mut calls).await.done();
    }
    cron.stop().await;
}

async fn redis_has_no_tick(url: &str) -> bool {
    let client = redis::Client::open(url).expect("a url");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
    let there: bool = redis::cmd("EXISTS").arg("cron_tick:a").query_async(&mut connection).await.expect("an answer");
    !there
}

#[tokio::test]
async fn a_lock_in_the_process_ends_with_its_run() {
    let locks = Locks::InProcess(Held::default());
    let lock = locks.take("a", Utc::now()).await.expect("asked").expect("free");
    assert!(matches!(lock, Lock::InProcess(_)));
    assert!(locks.take("a", Utc::now()).await.expect("asked").is_none());
    assert!(locks.take("b", Utc::now()).await.expect("asked").is_some(), "another job's lock");
    lock.held_during(async {}).await;
    assert!(locks.take("a", Utc::now()).await.expect("asked").is_some());
}
