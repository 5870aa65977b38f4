//! The worker as the engine knows it: bindings become routes, settings a listener.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use engine_builtin::{Binding, BoxFuture, Builtin, BuiltinError, Engine, ErrorBody, RegisterTriggerType, Settings};
use futures_util::FutureExt;
use serde_json::json;
use serde_json::value::to_raw_value;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::info;

use crate::address::Address;
use crate::exchange::Shared;
use crate::listener::Listening;
use crate::route::Route;
use crate::routes::Routes;
use crate::settings::HttpSettings;

pub const NAME: &str = "iii-http";

/// How long requests may take to end when the worker stops.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// A new worker with these settings.
///
/// # Errors
/// A setting that does not fit.
pub async fn create(engine: Engine, settings: Settings) -> Result<Arc<dyn Builtin>, BuiltinError> {
    Ok(Http::new(engine, settings, None)?)
}

pub struct Http {
    shared: Arc<Shared>,
    /// Held by whoever starts, moves or stops it: one at a time.
    place: Mutex<Place>,
}

struct Place {
    /// As the settings have it.
    wanted: Address,
    /// For the start, if `wanted` cannot be had.
    fallback: Option<Address>,
    /// From the start to the end.
    is_open: bool,
    /// None while it is not open, and where neither a new address nor the old one could be had.
    listening: Option<Listening>,
    /// Connections of addresses that were left, each in its last request.
    leaving: Vec<JoinSet<()>>,
}

impl Http {
    /// `declared` is config.yaml's block, where `settings` are stored ones: its address is taken at the start if theirs
    /// cannot be had.
    ///
    /// # Errors
    /// A setting that does not fit; of `declared` it is passed over.
    pub fn new(engine: Engine, settings: Settings, declared: Option<Settings>) -> Result<Arc<Self>, BuiltinError> {
        let settings = HttpSettings::new(settings)?;
        let fallback =
            declared.and_then(|declared| HttpSettings::new(declared).ok()).map(|declared| declared.address());
        let place =
            Place { wanted: settings.address(), fallback, is_open: false, listening: None, leaving: Vec::new() };
        Ok(Arc::new(Self { shared: Arc::new(Shared::new(engine, &settings)), place: Mutex::new(place) }))
    }

    /// Where it listens, while it does.
    pub async fn address(&self) -> Option<SocketAddr> {
        self.place.lock().await.listening.as_ref().map(|listening| listening.address)
    }

    /// As after a move that failed and could not be taken back.
    #[cfg(test)]
    pub(crate) async fn lose_its_address(&self) {
        self.place.lock().await.leave().await;
    }

    fn routes(&self) -> RwLockWriteGuard<'_, Routes> {
        self.shared.routes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn listen(&mut self, listener: TcpListener, shared: &Arc<Shared>) -> Result<(), BuiltinError> {
        let listening = Listening::begin(listener, Arc::clone(shared))
            .map_err(|source| BuiltinError::failed("could not listen for HTTP", source))?;
        info!(address = %listening.address, "listening for HTTP");
        self.listening = Some(listening);
        Ok(())
    }

    async fn leave(&mut self) {
        if let Some(listening) = self.listening.take()
            && let Ok(connections) = listening.close().await
        {
            self.leaving.push(connections);
        }
        for connections in &mut self.leaving {
            while connections.try_join_next().is_some() {}
        }
        self.leaving.retain(|connections| !connections.is_empty());
    }

    /// Binds the new address before the old one is left. On one port that is not always possible, `0.0.0.0` holds it
    /// for every address: then the old one is left for a moment, and taken again if the new one fails.
    async fn move_to(&mut self, address: &Address, shared: &Arc<Shared>) -> Result<(), BuiltinError> {
        let current = self.listening.as_ref().map(|listening| listening.address);
        let error = match address.bind().await {
            Ok(listener) => {
                self.leave().await;
                return self.listen(listener, shared);
            }
            Err(error) => error,
        };
        let in_our_way = error.kind() == io::ErrorKind::AddrInUse;
        let Some(current) = current.filter(|current| in_our_way && current.port() == address.port) else {
            return Err(address.not_bound(error));
        };
        self.leave().await;
        match address.bind().await {
            Ok(listener) => self.listen(listener, shared),
            Err(error) => {
                let old = Address { host: current.ip().to_string(), port: current.port() };
                let listener = old.bind().await.map_err(|source| old.not_bound(source))?;
                self.listen(listener, shared)?;
                Err(address.not_bound(error))
            }
        }
    }
}

impl Builtin for Http {
    fn name(&self) -> &'static str {
        NAME
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        let binding = json!({
            "type": "object",
            "required": ["api_path"],
            "properties": {
                "api_path": {"type": "string", "description": "Path; a segment :name is a parameter"},
                "http_method": {"type": "string", "default": "GET",
                    "enum": ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]},
                "condition_function_id": {"type": "string", "description": "Asked first; false answers with 422"},
                "middleware_function_ids": {"type": "array", "items": {"type": "string"}}
            }
        });
        let channel = json!({"type": "object", "description": "Reference to a data channel"});
        let text_map = json!({"type": "object", "additionalProperties": {"type": "string"}});
        let call = json!({
            "type": "object",
            "properties": {
                "path_params": text_map, "query_params": text_map, "headers": text_map,
                "path": {"type": "string"}, "method": {"type": "string"},
                "body": {"description": "Parsed JSON, or null"},
                "trigger": {"type": "object"}, "request_body": channel, "response": channel
            }
        });
        vec![RegisterTriggerType {
            id: "http".into(),
            description: Some("Calls a function for each HTTP request to its route".into()),
            trigger_request_format: to_raw_value(&binding).ok(),
            call_request_format: to_raw_value(&call).ok(),
        }]
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        match Route::new(binding.clone()) {
            Ok(route) => self.routes().insert(route),
            Err(error) => {
                self.routes().remove(&binding.id);
                Err(error)
            }
        }
    }

    fn unbind(&self, _trigger_type: &str, id: &str) {
        self.routes().remove(id);
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async {
            let mut place = self.place.lock().await;
            let listener = place.wanted.bind_or(place.fallback.as_ref()).await?;
            place.listen(listener, &self.shared)?;
            place.is_open = true;
            Ok(())
        }
        .boxed()
    }

    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async {
            let settings = HttpSettings::new(settings)?;
            let mut place = self.place.lock().await;
            let address = settings.address();
            let is_there = place.wanted == address && place.listening.is_some();
            if place.is_open && !is_there {
                place.move_to(&address, &self.shared).await?;
            }
            place.wanted = address;
            self.shared.apply(&settings);
            Ok(())
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            let mut place = self.place.lock().await;
            place.is_open = false;
            place.leave().await;
            let leaving = std::mem::take(&mut place.leaving);
            let ended = async {
                for mut connections in leaving {
                    while connections.join_next().await.is_some() {}
                }
            };
            // What is not done by then is dropped, and its connection with it.
            let _ = tokio::time::timeout(DRAIN_GRACE, ended).await;
        }
        .boxed()
    }
}
