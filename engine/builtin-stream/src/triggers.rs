//! Who is bound to `stream`, `stream:join` and `stream:leave`, and their handlers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine_builtin::{Binding, Deliveries, Engine, ErrorBody, Invocation, LogLimit, Raw, Recipient, Standing, Trace};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::warn;

use crate::event::Event;

pub(crate) const STREAM: &str = "stream";
pub(crate) const JOIN: &str = "stream:join";
pub(crate) const LEAVE: &str = "stream:leave";

/// For one handler of `stream:join` or `stream:leave`.
const ANSWERING: Duration = Duration::from_secs(30);

pub(crate) struct Triggers {
    engine: Engine,
    deliveries: Deliveries,
    bound: Mutex<Bound>,
    /// Of lines that callers and handlers cause.
    pub(crate) log: LogLimit,
}

#[derive(Default)]
struct Bound {
    /// By stream.
    stream: HashMap<String, Vec<Arc<Watch>>>,
    join: Vec<Visit>,
    leave: Vec<Visit>,
}

/// A binding of `stream`.
#[derive(Debug)]
struct Watch {
    id: String,
    to: Recipient,
    group_id: Option<String>,
    item_id: Option<String>,
    condition: Option<String>,
    standing: Standing,
}

/// A binding of `stream:join` or `stream:leave`.
#[derive(Debug, Clone)]
struct Visit {
    id: String,
    function_id: String,
}

#[derive(Deserialize)]
struct WatchConfig {
    stream_name: Option<String>,
    group_id: Option<String>,
    item_id: Option<String>,
    condition_function_id: Option<String>,
}

/// What handlers of `stream:join` and `stream:leave` get.
#[derive(Debug, Serialize)]
pub(crate) struct Visitor<'a> {
    pub(crate) subscription_id: &'a str,
    pub(crate) stream_name: &'a str,
    pub(crate) group_id: &'a str,
    pub(crate) id: Option<&'a str>,
    pub(crate) context: Option<&'a Raw>,
}

#[derive(Deserialize)]
struct Verdict {
    #[serde(default)]
    unauthorized: serde_json::Value,
}

impl Triggers {
    /// Must be called inside a runtime.
    pub(crate) fn new(engine: Engine) -> Arc<Self> {
        let (deliveries, bound, log) = (Deliveries::new(), Mutex::default(), LogLimit::new(crate::NAME));
        Arc::new(Self { engine, deliveries, bound, log })
    }

    fn lock(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `trigger_registration_failed`.
    pub(crate) fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        let refused = |why: String| ErrorBody::new("trigger_registration_failed", why);
        let visit = || Visit { id: binding.id.clone(), function_id: binding.function_id.clone() };
        let to = Recipient::from(&binding);
        match binding.trigger_type.as_str() {
            JOIN => replace(&mut self.lock().join, visit()),
            LEAVE => replace(&mut self.lock().leave, visit()),
            _ => {
                let config: WatchConfig =
                    serde_json::from_value(binding.config).map_err(|error| refused(format!("stream: {error}")))?;
                let some = |text: Option<String>| text.filter(|text| !text.is_empty());
                let stream_name =
                    some(config.stream_name).ok_or_else(|| refused("stream: `stream_name` is missing".into()))?;
                let mut bound = self.lock();
                let watch = Watch {
                    standing: bound.take(&binding.id).map(|before| before.standing.clone()).unwrap_or_default(),
                    id: binding.id,
                    to,
                    group_id: some(config.group_id),
                    item_id: some(config.item_id),
                    condition: config.condition_function_id,
                };
                bound.stream.entry(stream_name).or_default().push(Arc::new(watch));
            }
        }
        Ok(())
    }

    pub(crate) fn unbind(&self, trigger_type: &str, id: &str) {
        let mut bound = self.lock();
        match trigger_type {
            JOIN => bound.join.retain(|visit| visit.id != id),
            LEAVE => bound.leave.retain(|visit| visit.id != id),
            _ => {
                if let Some(watch) = bound.take(id) {
                    watch.standing.end();
                }
            }
        }
    }

    /// Hands an event to its handlers, behind those of the same item. Never waits; what is too much for all or for one of
    /// them is dropped, and the log says so. A binding that has gone by its turn is not called any more.
    pub(crate) fn fire(&self, event: &Event, text: Raw, trace: &Trace) {
        let wanted = |watch: &&Arc<Watch>| {
            watch.group_id.as_ref().is_none_or(|group_id| *group_id == event.group_id)
                && (watch.item_id.is_none() || watch.item_id == event.id)
        };
        let watching: Vec<_> = match self.lock().stream.get(&event.stream_name) {
            Some(watching) => watching.iter().filter(wanted).cloned().collect(),
            None => return,
        };
        if watching.is_empty() {
            return;
        }
        let Ok(room) = self.deliveries.room(text.get().len() + trace.bytes()) else { return };
        let (text, lane) = (Arc::new(text), lane(event));
        for watch in watching {
            let (engine, text, trace) = (Arc::clone(&self.engine), Arc::clone(&text), trace.clone());
            let (bound, log) = (Arc::clone(&watch), self.log.clone());
            let work = async move {
                if bound.standing.has_ended() {
                    return;
                }
                let told = engine_builtin::Event {
                    trigger_type: STREAM,
                    function_id: bound.to.function_id(),
                    condition: bound.condition.as_deref(),
                    data: &text,
                    trace: &trace,
                };
                told.tell(&engine, &log).await;
            };
            let _ = self.deliveries.begin(&watch.to, Some(&lane), room.clone(), work.boxed());
        }
    }

    /// Asks every handler of `stream:join`, one after another. Only a literal `unauthorized: true`, or no answer in
    /// time, refuses.
    pub(crate) async fn may_join(&self, visitor: &Visitor<'_>) -> bool {
        let handlers = self.lock().join.clone();
        for handler in handlers {
            let verdict = match self.visit(&handler, visitor).await {
                Ok(verdict) => verdict,
                Err(Unanswered) => return false,
            };
            let verdict = verdict.and_then(|verdict| serde_json::from_str::<Verdict>(verdict.get()).ok());
            if verdict.is_some_and(|verdict| verdict.unauthorized == true) {
                return false;
            }
        }
        true
    }

    /// Tells every handler of `stream:leave`, one after another.
    pub(crate) async fn left(&self, visitor: &Visitor<'_>) {
        let handlers = self.lock().leave.clone();
        for handler in handlers {
            let _ = self.visit(&handler, visitor).await;
        }
    }

    async fn visit(&self, handler: &Visit, visitor: &Visitor<'_>) -> Result<Option<Raw>, Unanswered> {
        let data = serde_json::value::to_raw_value(visitor).expect("strings and JSON");
        let function = &handler.function_id;
        let call = self.engine.call(Invocation { function_id: function.clone(), data, trace: Trace::default() });
        match timeout(ANSWERING, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.log.line(|| warn!(function, %error, "a handler of a subscription failed"));
                Ok(None)
            }
            Err(_) => {
                self.log.line(|| warn!(function, "a handler of a subscription did not answer in time"));
                Err(Unanswered)
            }
        }
    }
}

struct Unanswered;

impl Bound {
    fn take(&mut self, id: &str) -> Option<Arc<Watch>> {
        let mut taken = None;
        self.stream.retain(|_, watching| {
            if let Some(at) = watching.iter().position(|watch| watch.id == id) {
                taken = Some(watching.remove(at));
            }
            !watching.is_empty()
        });
        taken
    }
}

fn replace(visits: &mut Vec<Visit>, visit: Visit) {
    visits.retain(|other| other.id != visit.id);
    visits.push(visit);
}

/// Events of one item are handled one after another, and so are those of a group as a whole.
fn lane(event: &Event) -> String {
    let group_id = &event.group_id;
    match &event.id {
        // No other group and item read the same.
        Some(id) => format!("{} {group_id} {id}", group_id.len()),
        None => format!("- {group_id}"),
    }
}
