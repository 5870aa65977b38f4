//! What every program here begins with.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iii_sdk::{
    FunctionRef, III, IIIError, InitOptions, RegisterFunction, RegisterTriggerInput, Trigger, TriggerAction,
    TriggerRequest, WorkerMetadata, register_worker,
};
use serde_json::{Value, json};

pub type Outcome = Result<(), Box<dyn std::error::Error>>;

pub fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

pub fn connect(name: &str) -> III {
    connect_to(&setting("III_URL"), name)
}

pub fn connect_to(url: &str, name: &str) -> III {
    let metadata = WorkerMetadata { name: name.to_owned(), ..WorkerMetadata::default() };
    register_worker(url, InitOptions { metadata: Some(metadata), ..InitOptions::default() })
}

pub async fn call(iii: &III, function: &str, payload: Value) -> Result<Value, IIIError> {
    send(iii, function, payload, None).await
}

pub async fn send(iii: &III, function: &str, payload: Value, action: Option<TriggerAction>) -> Result<Value, IIIError> {
    let request = TriggerRequest { function_id: function.to_owned(), payload, action, timeout_ms: Some(120_000) };
    iii.trigger(request).await
}

/// Code and message of the error that a call ends with.
pub fn failure(result: Result<Value, IIIError>) -> (String, String) {
    match result {
        Err(IIIError::Remote { code, message, .. }) => (code, message),
        other => panic!("no error of the other side: {other:?}"),
    }
}

pub fn register<F, Answer>(iii: &III, function: &str, handler: F) -> FunctionRef
where
    F: Fn(Value) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Value, IIIError>> + Send + 'static,
{
    iii.register_function(function, RegisterFunction::new_async(handler))
}

pub fn bind(iii: &III, trigger_type: &str, function: &str, config: Value) -> Result<Trigger, IIIError> {
    let (trigger_type, function_id) = (trigger_type.to_owned(), function.to_owned());
    iii.register_trigger(RegisterTriggerInput { trigger_type, function_id, config, metadata: None })
}

/// Waits until `condition` answers.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(answer) = condition().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}

/// Waits until the engine knows these functions.
pub async fn there(iii: &III, functions: &[&str]) {
    until("the functions", async || {
        let listed = call(iii, "engine::functions::list", json!({ "include_internal": true })).await.ok()?;
        let known = ids(&listed["functions"], "function_id");
        functions.iter().all(|function| known.iter().any(|id| id == function)).then_some(())
    })
    .await;
}

/// The texts that are `field` in a list of objects.
pub fn ids(list: &Value, field: &str) -> Vec<String> {
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|item| Some(item[field].as_str()?.to_owned())).collect()
}

/// Keeps what its function is called with.
#[derive(Clone, Default)]
pub struct Inbox(Arc<Mutex<Vec<Value>>>);

impl Inbox {
    pub fn registered(iii: &III, function: &str) -> Self {
        let inbox = Self::default();
        let kept = inbox.clone();
        register(iii, function, move |data| {
            kept.0.lock().expect("nobody panics with it").push(data);
            async { Ok(Value::Null) }
        });
        inbox
    }

    pub fn items(&self) -> Vec<Value> {
        self.0.lock().expect("nobody panics with it").clone()
    }

    pub async fn wait(&self, count: usize) -> Vec<Value> {
        until("a call", async || Some(self.items()).filter(|items| items.len() >= count)).await
    }

    /// Waits for one that `wanted` finds right.
    pub async fn find(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, async || self.items().into_iter().find(&wanted)).await
    }
}
