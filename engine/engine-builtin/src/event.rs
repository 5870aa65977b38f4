//! An event on its way to one handler: its condition is asked, then the function called, and neither for ever.

use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use crate::call::Trace;
use crate::condition::is_met;
use crate::engine::{Engine, Invocation};
use crate::{LogLimit, Raw};

/// For a function and its condition. What takes longer is not waited for.
const HANDLING: Duration = Duration::from_secs(60);

/// What one handler is told.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// For the log.
    pub trigger_type: &'static str,
    pub function_id: &'a str,
    pub condition: Option<&'a str>,
    pub data: &'a Raw,
    pub trace: &'a Trace,
}

impl Event<'_> {
    /// Returns when the handler has answered, is not wanted or is given up. What went wrong is told in the log alone.
    pub async fn tell(&self, engine: &Engine, log: &LogLimit) {
        let Self { trigger_type, function_id, .. } = *self;
        if timeout(HANDLING, self.told(engine, log)).await.is_err() {
            log.line(|| warn!(trigger_type, function_id, "a handler did not answer in time"));
        }
    }

    async fn told(&self, engine: &Engine, log: &LogLimit) {
        let Self { trigger_type, function_id, condition, data, trace } = *self;
        match is_met(engine, condition, data, trace).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log.line(|| {
                    warn!(trigger_type, function_id, condition, %error, "a condition failed: its handler is not called");
                });
                return;
            }
        }
        let call = Invocation { function_id: function_id.to_owned(), data: data.clone(), trace: trace.clone() };
        if let Err(error) = engine.call(call).await {
            log.line(|| warn!(trigger_type, function_id, %error, "a handler failed"));
        }
    }
}
