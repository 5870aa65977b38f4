//! Who listens to which topic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use engine_builtin::{Binding, ErrorBody, Recipient, optional_name};
use serde::Deserialize;

/// One binding of `subscribe`.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) id: String,
    pub(crate) to: Recipient,
    pub(crate) condition: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "optional_name")]
    topic: Option<String>,
    condition_function_id: Option<String>,
}

/// All bindings of `subscribe`. One without a topic is kept, and never fires.
#[derive(Default)]
pub(crate) struct Subscriptions {
    by_topic: HashMap<String, Vec<Arc<Subscription>>>,
    /// By id.
    topics: HashMap<String, String>,
    /// Grows with each change of the set of topics.
    version: u64,
}

impl Subscriptions {
    /// Adds it, or replaces the one with its id.
    ///
    /// # Errors
    /// `trigger_registration_failed`: its config does not fit.
    pub(crate) fn add(&mut self, binding: Binding) -> Result<(), ErrorBody> {
        let to = Recipient::from(&binding);
        let config: Option<Config> = serde_json::from_value(binding.config)
            .map_err(|error| ErrorBody::new("trigger_registration_failed", format!("subscribe: {error}")))?;
        let (topic, condition) = config.map_or((None, None), |config| (config.topic, config.condition_function_id));
        self.remove(&binding.id);
        let Some(topic) = topic.filter(|topic| !topic.is_empty()) else { return Ok(()) };
        let subscription = Subscription { id: binding.id.clone(), to, condition };
        self.topics.insert(binding.id, topic.clone());
        self.by_topic.entry(topic).or_default().push(Arc::new(subscription));
        self.version += 1;
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: &str) {
        let Some(topic) = self.topics.remove(id) else { return };
        if let Some(subscriptions) = self.by_topic.get_mut(&topic) {
            subscriptions.retain(|subscription| subscription.id != id);
            if subscriptions.is_empty() {
                self.by_topic.remove(&topic);
                self.version += 1;
            }
        }
    }

    pub(crate) fn of(&self, topic: &str) -> Vec<Arc<Subscription>> {
        self.by_topic.get(topic).cloned().unwrap_or_default()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn topics(&self) -> BTreeSet<String> {
        self.by_topic.keys().cloned().collect()
    }
}
