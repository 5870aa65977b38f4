//! What queues and exchanges are called on the broker: no name of ours can be taken for another's.

use sha2::{Digest, Sha256};

use crate::message::QueueId;

const PREFIX: &str = "iii";

/// AMQP's names end at 255 bytes; what is put in front of one fits into the rest.
const MAX_BYTES: usize = 200;

/// Every queue that messages are delivered from, and what is held for a topic.
pub(crate) fn queue(queue: &QueueId) -> String {
    match queue {
        QueueId::Named(name) => joined(&["queue", name]),
        QueueId::Subscriber { topic, function_id } => joined(&["subscriber", topic, function_id]),
        QueueId::Held(topic) => joined(&["held", topic]),
    }
}

/// Where a topic's messages are published; the queues of its functions are bound to it.
pub(crate) fn exchange(topic: &str) -> String {
    joined(&["topic", topic])
}

/// Where messages go that no queue is bound for.
pub(crate) fn held_exchange(topic: &str) -> String {
    joined(&["held", topic])
}

/// Where messages of a queue wait this long.
pub(crate) fn retry(queue: &str, pause_ms: u64) -> String {
    format!("{PREFIX}/retry/{pause_ms}/{queue}")
}

/// The dead letters of a queue or topic.
pub(crate) fn dead(name: &str) -> String {
    joined(&["dead", name])
}

fn joined(parts: &[&str]) -> String {
    let mut name = PREFIX.to_owned();
    for part in parts {
        name.push('/');
        name.push_str(&part.replace('%', "%25").replace('/', "%2F"));
    }
    if name.len() <= MAX_BYTES {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}/{}/sha256/{hex}", parts.first().unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_apart_and_short_enough() {
        let subscriber = |topic: &str, function_id: &str| {
            queue(&QueueId::Subscriber { topic: topic.into(), function_id: function_id.into() })
        };
        assert_eq!(subscriber("orders", "mail::send"), "iii/subscriber/orders/mail::send");
        assert_ne!(subscriber("a/b", "c"), subscriber("a", "b/c"));
        assert_ne!(subscriber("a%2Fb", "c"), subscriber("a/b", "c"));
        let long = subscriber(&"t".repeat(1024), "f");
        assert_ne!(long, subscriber(&"t".repeat(1023), "f"));
        assert!(retry(&long, u64::MAX).len() <= 255, "{long}");
    }
}
