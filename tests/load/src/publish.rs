//! From a publish to the subscriber: how soon, and how many.

use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::engine::Engine;
use crate::flow::{keep, registered};
use crate::peer::{Out, Peer, is_call, register, register_trigger};
use crate::table::{Row, Target};

const SUBSCRIBER: &str = "load::subscriber";
const PATIENCE: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_secs(1);

/// For the latency: 1000 messages a second.
const PACE: Duration = Duration::from_millis(5);
const AT_ONCE: u64 = 5;
const TICKS: u64 = 600;

/// For the rate.
const IN_FLIGHT: u64 = 256;
const LASTS: Duration = Duration::from_secs(5);

/// One way to publish.
struct Way {
    name: &'static str,
    function: &'static str,
    trigger_type: &'static str,
    /// Whether what comes faster than it can be delivered is dropped.
    loses: bool,
    p50: Option<Target>,
    rate: Option<Target>,
}

const DURABLE: Way = Way {
    name: "durable publish → subscriber",
    function: "iii::durable::publish",
    trigger_type: "durable:subscriber",
    loses: false,
    p50: Some(Target::P50Us(5000.0)),
    rate: Some(Target::PerSecond(10_000.0)),
};
const TRANSIENT: Way = Way {
    name: "publish → subscriber",
    function: "publish",
    trigger_type: "subscribe",
    loses: true,
    p50: None,
    rate: None,
};

const WORKERS: &str = "  - name: iii-queue\n  - name: iii-pubsub\n";

pub(crate) async fn measure(program: &Path, rows: &mut Vec<Row>) {
    for way in [DURABLE, TRANSIENT] {
        let engine = Engine::with(program, WORKERS);
        let epoch = Instant::now();
        let (mut publisher, mut arrivals) = connect(&engine, &way, epoch).await;
        let message = |out: &mut Out, number: u64| {
            let sent_ns = epoch.elapsed().as_nanos();
            let data = format!(r#"{{"topic":"load","data":{{"sent_ns":{sent_ns},"text":"{}"}}}}"#, "x".repeat(60));
            out.call(number, way.function, &data);
        };

        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (cpu, begun) = (engine.cpu(), Instant::now());
        for _ in 0..TICKS {
            ticks.tick().await;
            keep(&mut publisher, AT_ONCE, Duration::ZERO, message).await;
        }
        let latencies = arrivals.take(TICKS * AT_ONCE).await;
        let row = Row::new(&format!("{}, paced", way.name), latencies, begun.elapsed(), engine.cpu() - cpu);
        rows.push(Row { target: way.p50, ..row });

        let (cpu, begun) = (engine.cpu(), Instant::now());
        let published = keep(&mut publisher, IN_FLIGHT, LASTS, message).await;
        let (latencies, lasted) = match way.loses {
            false => (arrivals.take(published.len() as u64).await, begun.elapsed()),
            true => arrivals.take_what_comes(begun).await,
        };
        let lost = published.len() - latencies.len();
        let name = format!("{}, {IN_FLIGHT} publishes in flight", way.name);
        let row = Row::new(&name, latencies, lasted, engine.cpu() - cpu);
        let other = way.loses.then_some(("dropped: published faster than delivered", lost as f64, "messages"));
        rows.push(Row { target: way.rate, other, ..row });
    }
}

/// How long each message took that has reached the subscriber.
struct Arrivals(mpsc::UnboundedReceiver<Duration>);

impl Arrivals {
    async fn take(&mut self, count: u64) -> Vec<Duration> {
        let mut all = Vec::new();
        while (all.len() as u64) < count {
            let next = timeout(PATIENCE, self.0.recv()).await;
            let missing = count - all.len() as u64;
            all.push(next.unwrap_or_else(|_| panic!("{missing} messages never arrived")).expect("a subscriber"));
        }
        all
    }

    /// Until no more come; how long that was, from `begun` to the last.
    async fn take_what_comes(&mut self, begun: Instant) -> (Vec<Duration>, Duration) {
        let (mut all, mut lasted) = (Vec::new(), Duration::ZERO);
        while let Ok(Some(next)) = timeout(SILENCE, self.0.recv()).await {
            all.push(next);
            lasted = begun.elapsed();
        }
        (all, lasted)
    }
}

/// A subscriber, and a publisher whose messages it gets.
async fn connect(engine: &Engine, way: &Way, epoch: Instant) -> (Peer, Arrivals) {
    let mut subscriber = Peer::connect(engine.port).await;
    let trigger = register_trigger(way.trigger_type, SUBSCRIBER, r#"{"topic":"load"}"#);
    subscriber.send([register(SUBSCRIBER), trigger]).await;
    let mut publisher = Peer::connect(engine.port).await;
    registered(&mut publisher, way.function).await;
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut take = |text: &[u8], out: &mut Out| {
            if is_call(text) {
                if let Some(sent) = sent(text) {
                    let _ = tell.send(epoch.elapsed().saturating_sub(sent));
                }
                out.answer(text, "null");
            }
        };
        while subscriber.each(&mut take).await {}
    });
    let mut arrivals = Arrivals(told);
    let first = |out: &mut Out, number| out.call(number, way.function, r#"{"topic":"load","data":{"sent_ns":0}}"#);
    loop {
        // Until the trigger is there, messages may go nowhere.
        keep(&mut publisher, 1, Duration::ZERO, first).await;
        if timeout(Duration::from_millis(200), arrivals.0.recv()).await.is_ok() {
            break;
        }
    }
    while timeout(Duration::from_millis(200), arrivals.0.recv()).await.is_ok() {}
    (publisher, arrivals)
}

/// When the message in a call was published.
fn sent(text: &[u8]) -> Option<Duration> {
    const NAME: &[u8] = b"\"sent_ns\":";
    let rest = &text[memmem::find(text, NAME)? + NAME.len()..];
    let digits = rest.split(|other| !other.is_ascii_digit()).next()?;
    str::from_utf8(digits).ok()?.parse().ok().map(Duration::from_nanos)
}
