//! Who subscribes to which topic.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::delivery::{Delivery, Order};
use crate::store::ABSENCE;

/// Functions of one topic that have gone and still get copies: the ones that went last.
pub(crate) const MAX_ABSENT: usize = 64;

/// A function that gets a copy, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receiver {
    pub(crate) function_id: String,
    pub(crate) order: Order,
    pub(crate) delay_ms: u64,
}

struct Subscriber {
    receiver: Receiver,
    /// When its last binding went; none while it has one.
    gone: Option<Instant>,
}

/// Topic → function → how it subscribes.
pub(crate) struct Topics(HashMap<String, BTreeMap<String, Subscriber>>);

impl Topics {
    /// `remembered` are those of the engine's life before: they have gone, but not for long.
    pub(crate) fn new(remembered: Vec<(String, Receiver)>, now: Instant) -> Self {
        let mut topics = HashMap::<String, BTreeMap<String, Subscriber>>::new();
        for (topic, receiver) in remembered {
            let function_id = receiver.function_id.clone();
            topics.entry(topic).or_default().insert(function_id, Subscriber { receiver, gone: Some(now) });
        }
        Self(topics)
    }

    /// True: it has a binding now, and had none, or another one.
    pub(crate) fn set(&mut self, topic: &str, function_id: &str, delivery: Option<&Delivery>) -> bool {
        let Some(delivery) = delivery else {
            if let Some(subscriber) = self.0.get_mut(topic).and_then(|functions| functions.get_mut(function_id)) {
                subscriber.gone = Some(Instant::now());
            }
            return false;
        };
        let function = function_id.to_owned();
        let receiver = Receiver { function_id: function.clone(), order: delivery.order, delay_ms: delivery.delay_ms };
        let subscriber = Subscriber { receiver: receiver.clone(), gone: None };
        let before = self.0.entry(topic.to_owned()).or_default().insert(function, subscriber);
        before.is_none_or(|before| before.gone.is_some() || before.receiver != receiver)
    }

    /// Who gets what is published to `topic` now, and who has been gone for too long and is forgotten.
    pub(crate) fn receivers(&mut self, topic: &str, now: Instant) -> (Vec<Receiver>, Vec<String>) {
        let Some(functions) = self.0.get_mut(topic) else { return Default::default() };
        let forgotten = forget(functions, now);
        let receivers = functions.values().map(|subscriber| subscriber.receiver.clone()).collect();
        if functions.is_empty() {
            self.0.remove(topic);
        }
        (receivers, forgotten)
    }

    /// Topic and function of all that have been gone for too long, or are too many; they are forgotten.
    pub(crate) fn prune(&mut self, now: Instant) -> Vec<(String, String)> {
        let mut forgotten = Vec::new();
        self.0.retain(|topic, functions| {
            forgotten.extend(forget(functions, now).into_iter().map(|function_id| (topic.clone(), function_id)));
            !functions.is_empty()
        });
        forgotten
    }

    /// Whether a topic has more functions that have gone than it may.
    pub(crate) fn is_crowded(&self, topic: &str) -> bool {
        let gone = |functions: &BTreeMap<String, Subscriber>| functions.values().filter(|it| it.gone.is_some()).count();
        self.0.get(topic).is_some_and(|functions| gone(functions) > MAX_ABSENT)
    }

    /// Topics and functions that have a binding.
    pub(crate) fn bound(&self) -> Vec<(String, Receiver)> {
        let bound = |(topic, functions): (&String, &BTreeMap<String, Subscriber>)| {
            let bound = functions.values().filter(|it| it.gone.is_none());
            bound.map(|it| (topic.clone(), it.receiver.clone())).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(bound).collect()
    }

    pub(crate) fn receiver(&self, topic: &str, function_id: &str) -> Option<Receiver> {
        self.0.get(topic)?.get(function_id).map(|subscriber| subscriber.receiver.clone())
    }

    /// Topics with the number of functions that have a binding.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let bound = |functions: &BTreeMap<String, Subscriber>| {
            functions.values().filter(|subscriber| subscriber.gone.is_none()).count() as u64
        };
        self.0.iter().map(|(topic, functions)| (topic.clone(), bound(functions))).filter(|(_, n)| *n > 0).collect()
    }
}

fn forget(functions: &mut BTreeMap<String, Subscriber>, now: Instant) -> Vec<String> {
    let mut absent: Vec<Instant> = functions.values().filter_map(|it| it.gone).collect();
    absent.sort_unstable_by(|one, other| other.cmp(one));
    // Of those that went at one moment, all stay or none.
    let oldest = absent.get(MAX_ABSENT).copied();
    let is_forgotten = |it: &Subscriber| {
        it.gone.is_some_and(|gone| now.saturating_duration_since(gone) > ABSENCE || oldest.is_some_and(|at| gone <= at))
    };
    functions.extract_if(.., |_, it| is_forgotten(it)).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_function_that_has_gone_gets_copies_for_a_while() {
        let settings = crate::settings::QueueWorkerSettings::parse(&serde_json::Value::Null).expect("settings");
        let delivery = settings.subscriptions;
        let before = Receiver { function_id: "before".into(), order: Order::Fifo, delay_ms: 0 };
        let mut topics = Topics::new(vec![("t".into(), before)], Instant::now());
        assert!(topics.set("t", "f", Some(&delivery)));
        assert!(!topics.set("t", "f", Some(&delivery)), "the same one again is not new");
        topics.set("t", "f", None);
        let names = |(receivers, forgotten): (Vec<Receiver>, Vec<String>)| {
            (receivers.into_iter().map(|it| it.function_id).collect::<Vec<_>>(), forgotten)
        };
        let now = Instant::now();
        assert_eq!(names(topics.receivers("t", now)), (vec!["before".to_owned(), "f".to_owned()], vec![]));
        let later = now + ABSENCE + Duration::from_secs(1);
        assert_eq!(names(topics.receivers("t", later)), (vec![], vec!["before".to_owned(), "f".to_owned()]));
        assert!(topics.counts().is_empty());
        assert!(topics.set("t", "f", Some(&delivery)), "it comes back");
    }

    #[test]
    fn of_many_that_have_gone_the_last_ones_are_remembered() {
        let settings = crate::settings::QueueWorkerSettings::parse(&serde_json::Value::Null).expect("settings");
        let mut topics = Topics::new(vec![], Instant::now());
        topics.set("t", "stays", Some(&settings.subscriptions));
        let mut forgotten = 0;
        for number in 0..3 * MAX_ABSENT {
            let function_id = format!("f{number:03}");
            topics.set("t", &function_id, Some(&settings.subscriptions));
            topics.set("t", &function_id, None);
            if topics.is_crowded("t") {
                forgotten += topics.prune(Instant::now()).len();
            }
        }
        let (receivers, _) = topics.receivers("t", Instant::now());
        assert!(receivers.len() <= MAX_ABSENT + 1 && forgotten >= 2 * MAX_ABSENT, "{receivers:?}");
        assert_eq!(receivers.last().expect("one").function_id, "stays");
        assert!(receivers.iter().any(|it| it.function_id == format!("f{}", 3 * MAX_ABSENT - 1)));
        assert_eq!(topics.bound().len(), 1);
    }
}
