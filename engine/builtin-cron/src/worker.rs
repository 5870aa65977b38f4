//! The worker: a table of jobs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use engine_builtin::{
    Binding, BoxFuture, Builtin, BuiltinError, Engine, ErrorBody, LogLimit, RegisterTriggerType, Settings,
};
use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SystemClock};
use crate::expression::{self, BadExpression};
use crate::job::{Host, Job};
use crate::lock::{Held, Locks};
use crate::redis_lock::RedisLocks;
use crate::settings::{Adapter, adapter};

/// As in config.yaml.
pub const NAME: &str = "iii-cron";

const TRIGGER_TYPE: &str = "cron";

/// # Errors
/// Settings that do not fit, or a Redis that cannot be reached.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    Ok(Arc::new(Cron::new(engine, settings, Arc::new(SystemClock)).await?))
}

struct Cron {
    host: Arc<Host>,
    /// The same through all changes of the adapter: a run that has begun still counts.
    held: Held,
    /// What retires each job, by the id of its binding.
    jobs: Mutex<HashMap<String, CancellationToken>>,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Cron {
    async fn new(engine: Engine, settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, BuiltinError> {
        let held = Held::default();
        let locks = RwLock::new(Arc::new(open(adapter(settings)?, &held).await?));
        Ok(Self {
            held,
            host: Arc::new(Host { engine, clock, locks, ended: CancellationToken::new(), log: LogLimit::new(NAME) }),
            jobs: Mutex::new(HashMap::new()),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        })
    }

    fn retire(&self, id: &str) {
        if let Some(job) = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
            job.cancel();
        }
    }
}

async fn open(adapter: Adapter, held: &Held) -> Result<Locks, BuiltinError> {
    match adapter {
        Adapter::Kv => Ok(Locks::InProcess(held.clone())),
        Adapter::Redis { url } => RedisLocks::connect(&url)
            .await
            .map(Locks::Redis)
            .map_err(|error| BuiltinError::failed("could not use `adapter.config.redis_url` for cron locks", error)),
    }
}

/// A binding's config.
#[derive(Deserialize)]
struct Wanted {
    expression: String,
    condition_function_id: Option<String>,
}

fn job(binding: Binding) -> Result<Job, ErrorBody> {
    let refused = |why: String| ErrorBody::new("trigger_registration_failed", why);
    if binding.config.get("expression").is_none_or(Value::is_null) {
        return Err(refused(BadExpression::Missing.to_string()));
    }
    let wanted: Wanted = serde_json::from_value(binding.config)
        .map_err(|error| refused(format!("the cron trigger's config: {error}")))?;
    let schedule = expression::parse(&wanted.expression).map_err(|error| refused(error.to_string()))?;
    Ok(Job {
        id: binding.id,
        function_id: binding.function_id,
        condition_function_id: wanted.condition_function_id,
        schedule,
    })
}

impl Builtin for Cron {
    fn name(&self) -> &'static str {
        NAME
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        let config = json!({
            "type": "object",
            "required": ["expression"],
            "properties": {
                "expression": {
                    "type": "string",
                    "description": "second minute hour day-of-month month day-of-week [year], in UTC; for example \
                                    `0 30 9 * * Mon-Fri`.",
                },
                "condition_function_id": {
                    "type": "string",
                    "description": "Called first with the same payload; `false` skips the run.",
                },
            },
        });
        let time = json!({ "type": "string", "format": "date-time" });
        let payload = json!({
            "type": "object",
            "required": ["trigger", "job_id", "scheduled_time", "actual_time"],
            "properties": {
                "trigger": { "const": "cron" },
                "job_id": { "type": "string", "description": "The trigger's id." },
                "scheduled_time": time,
                "actual_time": time,
            },
        });
        vec![RegisterTriggerType {
            id: TRIGGER_TYPE.into(),
            description: Some("Calls a function at the times of a cron expression.".into()),
            trigger_request_format: to_raw_value(&config).ok(),
            call_request_format: to_raw_value(&payload).ok(),
        }]
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        // A known id is replaced, also by one that is refused: its old times are no longer wanted.
        self.retire(&binding.id);
        let job = job(binding)?;
        let retired = self.host.ended.child_token();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id.clone(), retired.clone());
        self.tasks.spawn_on(job.keep(Arc::clone(&self.host), retired), &self.runtime);
        Ok(())
    }

    fn unbind(&self, _trigger_type: &str, id: &str) {
        self.retire(id);
    }

    /// Runs in progress keep the lock they have; what begins later asks the new adapter.
    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        Box::pin(async {
            let locks = Arc::new(open(adapter(settings)?, &self.held).await?);
            *self.host.locks.write().unwrap_or_else(PoisonError::into_inner) = locks;
            Ok(())
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.host.ended.cancel();
            self.tasks.close();
            self.tasks.wait().await;
        })
    }
}

#[cfg(test)]
mod tests;
