//! How messages of a queue are delivered, and one delivery.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use engine_builtin::{Engine, ErrorBody, Invocation, Trace, is_met};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use crate::message::Message;

/// Longest pause before an attempt, however often one has failed.
const MAX_BACKOFF_MS: u64 = 24 * 60 * 60 * 1000;

/// The member of a baggage that names the function a call is for.
const FUNCTION_MEMBER: &str = "iii.function.id";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    Standard,
    /// One in flight; a failed one is tried again before its successors.
    Fifo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backoff {
    Exponential,
    Fixed,
}

/// The rules of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) order: Order,
    /// Deliveries before a message is given up, the first included.
    pub(crate) max_attempts: u32,
    pub(crate) concurrency: usize,
    pub(crate) backoff_ms: u64,
    pub(crate) backoff: Backoff,
    /// Between publishing and the first delivery.
    pub(crate) delay_ms: u64,
    /// A delivery that takes longer has failed; none: it may take as long as it likes.
    pub(crate) timeout_ms: Option<u64>,
}

impl Delivery {
    /// How many may be in flight.
    pub(crate) fn in_flight(&self) -> usize {
        match self.order {
            Order::Standard => self.concurrency.max(1),
            Order::Fifo => 1,
        }
    }

    /// The pause after this many failed attempts; `None` when there are no more.
    pub(crate) fn pause_ms(&self, attempts: u32) -> Option<u64> {
        if attempts >= self.max_attempts {
            return None;
        }
        let factor = match self.backoff {
            Backoff::Fixed => 1,
            Backoff::Exponential => 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX),
        };
        Some(self.backoff_ms.saturating_mul(factor).min(MAX_BACKOFF_MS))
    }
}

/// Calls a message's function, if its condition lets it: a delivery that a condition refuses is done.
///
/// # Errors
/// The attempt has failed, and why.
pub(crate) async fn deliver(
    engine: &Engine,
    condition: Option<&str>,
    timeout_ms: Option<u64>,
    message: &Message,
) -> Result<(), String> {
    let trace = for_function(message.trace(), &message.function_id);
    let attempt = async {
        if is_met(engine, condition, &message.data, &trace).await? {
            let function_id = message.function_id.clone();
            engine.call(Invocation { function_id, data: message.data.clone(), trace: trace.clone() }).await?;
        }
        Ok::<(), ErrorBody>(())
    };
    // A panic below is one failed attempt, not the end of its queue.
    let attempt = AssertUnwindSafe(attempt).catch_unwind();
    let ended = match timeout_ms {
        None => attempt.await,
        Some(limit) => match tokio::time::timeout(Duration::from_millis(limit), attempt).await {
            Ok(ended) => ended,
            Err(_) => return Err(format!("no answer within {limit} ms")),
        },
    };
    match ended {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err("the delivery panicked".to_owned()),
    }
}

/// The trace context of a message, in which its function is the one that is called.
fn for_function(trace: Trace, function_id: &str) -> Trace {
    let baggage = trace.baggage.map(|baggage| {
        let members = baggage.split(',').map(|member| {
            let (pair, properties) = member.split_once(';').map_or((member, None), |(pair, rest)| (pair, Some(rest)));
            match pair.split_once('=') {
                Some((name, _)) if name.trim() == FUNCTION_MEMBER => {
                    let properties = properties.map(|rest| format!(";{rest}")).unwrap_or_default();
                    format!("{FUNCTION_MEMBER}={}{properties}", percent_encoded(function_id))
                }
                _ => member.to_owned(),
            }
        });
        members.collect::<Vec<_>>().join(",")
    });
    Trace { traceparent: trace.traceparent, baggage }
}

/// What W3C baggage lets stand in a value (`baggage-octet`), and `%XX` for the rest.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(max_attempts: u32, backoff: Backoff) -> Delivery {
        let order = Order::Standard;
        Delivery { order, max_attempts, concurrency: 10, backoff_ms: 1000, backoff, delay_ms: 0, timeout_ms: None }
    }

    #[test]
    fn pauses_double_until_attempts_are_used_up() {
        let pauses: Vec<_> = (1..=4).map(|n| delivery(4, Backoff::Exponential).pause_ms(n)).collect();
        assert_eq!(pauses, [Some(1000), Some(2000), Some(4000), None]);
        assert_eq!(delivery(4, Backoff::Fixed).pause_ms(3), Some(1000));
        assert_eq!(delivery(1, Backoff::Exponential).pause_ms(1), None);
        assert_eq!(delivery(u32::MAX, Backoff::Exponential).pause_ms(200), Some(MAX_BACKOFF_MS));
    }

    struct Hanging;

    impl engine_builtin::EngineApi for Hanging {
        fn call(&self, _: Invocation) -> engine_builtin::BoxFuture<'static, engine_builtin::Answer> {
            Box::pin(std::future::pending())
        }

        fn knows(&self, _: &str) -> bool {
            true
        }

        fn pipe_to_worker(&self, _: usize) -> (engine_builtin::PipeWriter, engine_builtin::ChannelRef) {
            unreachable!("queues use no channels")
        }

        fn pipe_from_worker(&self, _: usize) -> (engine_builtin::ChannelRef, engine_builtin::PipeReader) {
            unreachable!("queues use no channels")
        }

        fn withdraw(&self, _: &engine_builtin::ChannelRef) {
            unreachable!("queues use no channels")
        }

        fn stats(&self) -> engine_builtin::Stats {
            engine_builtin::Stats::default()
        }

        fn version(&self) -> &'static str {
            "0"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_out_of_a_named_queue_that_is_never_answered_fails() {
        let settings = crate::settings::QueueWorkerSettings::parse(&serde_json::Value::Null).expect("settings");
        let engine: Engine = std::sync::Arc::new(Hanging);
        let message = Message::new("hangs", engine_builtin::Raw::default(), Trace::default());
        let timeout_ms = settings.queues["default"].delivery.timeout_ms;
        let ended = deliver(&engine, None, timeout_ms, &message).await;
        assert_eq!(ended, Err("no answer within 1800000 ms".to_owned()));
    }

    #[test]
    fn the_baggage_names_the_function_that_is_called() {
        let rewritten = |baggage: &str| {
            for_function(Trace { traceparent: None, baggage: Some(baggage.into()) }, "a::b c").baggage.expect("baggage")
        };
        assert_eq!(rewritten("k=1, iii.function.id=old;p=2,z=3"), "k=1,iii.function.id=a::b%20c;p=2,z=3");
        assert_eq!(rewritten("k=iii.function.id"), "k=iii.function.id");
        assert_eq!(rewritten(""), "");
        assert_eq!(for_function(Trace::default(), "f"), Trace::default());
    }
}
