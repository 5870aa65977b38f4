//! The worker: its settings in use, its listener, its functions and trigger types.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use engine_builtin::{
    Binding, BoxFuture, Builtin, BuiltinError, Call, Engine, ErrorBody, RegisterFunction, RegisterTriggerType, Reply,
    Settings,
};
use futures_util::FutureExt;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::adapter::Place;
use crate::functions;
use crate::server::{self, Current, Reception};
use crate::settings::{self, AdapterConfig, Address};
use crate::triggers::{JOIN, LEAVE, STREAM, Triggers};

/// For connections to end, their `stream:leave` handlers included.
const ENDING: Duration = Duration::from_secs(5);

/// The worker `iii-stream`.
pub struct Stream {
    reception: Arc<Reception>,
    /// Where to listen when the stored address cannot be had.
    fallback: Option<Address>,
    listening: tokio::sync::Mutex<Option<Listening>>,
    /// Started, and not stopped: it is to listen, whether or not it does.
    serving: AtomicBool,
    address: Mutex<Option<SocketAddr>>,
    /// Adapters that connections may still be using: one that is wanted again is taken up, not opened twice.
    places: Mutex<Vec<Weak<Place>>>,
}

/// Accepts until this is dropped.
struct Listening {
    at: Address,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Listening {
    /// The port is free when this returns. If it is cut short, it is to be called again.
    async fn end(&mut self) {
        self.stop.cancel();
        if !self.accepting.is_finished() {
            let _ = (&mut self.accepting).await;
        }
    }

    fn is_ending(&self) -> bool {
        self.stop.is_cancelled()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn end(listening: &mut Option<Listening>) {
    if let Some(old) = listening {
        old.end().await;
    }
    *listening = None;
}

impl Stream {
    /// Opens the adapter. `fallback` is the worker's block of config.yaml, whose address is taken when that of the
    /// settings cannot be had.
    ///
    /// # Errors
    /// Settings that do not fit; an adapter that cannot be opened.
    pub async fn create(engine: Engine, settings: Settings, fallback: Option<Settings>) -> Result<Self, BuiltinError> {
        let config = settings::parse(settings)?;
        let fallback = fallback.map(settings::parse).transpose()?.map(|config| config.address);
        let triggers = Triggers::new(Arc::clone(&engine));
        let place = Arc::new(Place::open(config.adapter.clone(), &triggers).await?);
        let places = Mutex::new(vec![Arc::downgrade(&place)]);
        Ok(Self {
            reception: Reception::new(engine, triggers, Current { config, place }),
            fallback,
            listening: tokio::sync::Mutex::new(None),
            serving: AtomicBool::new(false),
            address: Mutex::new(None),
            places,
        })
    }

    /// Where subscribers connect to, once started.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place(&self, config: &AdapterConfig) -> Result<Arc<Place>, BuiltinError> {
        let places = || self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let open = places().iter().filter_map(Weak::upgrade).find(|place| place.config == *config);
        if let Some(open) = open {
            return Ok(open);
        }
        let place = Arc::new(Place::open(config.clone(), &self.reception.triggers).await?);
        let mut places = places();
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        Ok(place)
    }

    fn accept(&self, listener: TcpListener, at: &Address) -> Listening {
        let address = listener.local_addr().ok();
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
        if let Some(address) = address {
            info!(%address, "listening for subscribers");
        }
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(server::accept(listener, Arc::clone(&self.reception), stop.clone()));
        Listening { at: at.clone(), stop, accepting }
    }

    /// The address of the settings, or the one to fall back to: never from this machine alone to others as well.
    async fn listen_somewhere(&self, wanted: &Address) -> Result<Listening, BuiltinError> {
        let error = match bind(wanted).await {
            Ok(listener) => return Ok(self.accept(listener, wanted)),
            Err(error) => error,
        };
        let fallback = self.fallback.as_ref().filter(|fallback| *fallback != wanted);
        let fallback = fallback.filter(|fallback| fallback.is_loopback() || !wanted.is_loopback());
        let Some(fallback) = fallback else { return Err(unavailable(wanted, error)) };
        warn!(%error, port = wanted.port, "could not listen for subscribers: the address of config.yaml is tried");
        let listener = bind(fallback).await.map_err(|error| unavailable(fallback, error))?;
        Ok(self.accept(listener, fallback))
    }

    /// Listens anew before the old listener ends. Two addresses of one port exclude each other; then the old one ends
    /// first, and comes back when the new one cannot be had. May be cut short anywhere: then the next call listens.
    async fn relisten(&self, listening: &mut Option<Listening>, wanted: &Address) -> Result<(), BuiltinError> {
        if listening.as_ref().is_some_and(Listening::is_ending) {
            end(listening).await;
        }
        let before = match listening {
            Some(old) if old.at == *wanted => return Ok(()),
            Some(old) => Some(old.at.clone()),
            None => None,
        };
        let error = match bind(wanted).await {
            Ok(listener) => {
                if let Some(mut old) = listening.replace(self.accept(listener, wanted)) {
                    old.end().await;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let same_port = |before: &Address| error.kind() == io::ErrorKind::AddrInUse && before.port == wanted.port;
        let Some(before) = before.filter(same_port) else { return Err(unavailable(wanted, error)) };
        end(listening).await;
        match bind(wanted).await {
            Ok(listener) => {
                *listening = Some(self.accept(listener, wanted));
                Ok(())
            }
            Err(error) => {
                *listening = bind(&before).await.ok().map(|listener| self.accept(listener, &before));
                Err(unavailable(wanted, error))
            }
        }
    }
}

async fn bind(address: &Address) -> io::Result<TcpListener> {
    TcpListener::bind((address.host.as_str(), address.port)).await
}

fn unavailable(address: &Address, error: io::Error) -> BuiltinError {
    BuiltinError::failed(format!("could not listen for subscribers on {}:{}", address.host, address.port), error)
}

impl Builtin for Stream {
    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn functions(&self) -> Vec<RegisterFunction> {
        functions::registrations()
    }

    fn trigger_types(&self) -> Vec<RegisterTriggerType> {
        let text = || json!({ "type": "string" });
        let watch = json!({
            "type": "object",
            "required": ["stream_name"],
            "properties": {
                "stream_name": text(), "group_id": text(), "item_id": text(), "condition_function_id": text()
            }
        });
        let visit = json!({ "type": "object" });
        vec![
            trigger_type(STREAM, "Fires for each event of a stream", &watch),
            trigger_type(JOIN, "Asks whether a subscriber may join", &visit),
            trigger_type(LEAVE, "Fires when a subscriber leaves", &visit),
        ]
    }

    fn call(&self, call: Call) -> Reply {
        let place = self.reception.current().place;
        Reply::later(functions::call(Arc::clone(&self.reception.engine), place, call))
    }

    fn bind(&self, binding: Binding) -> Result<(), ErrorBody> {
        self.reception.triggers.bind(binding)
    }

    fn unbind(&self, trigger_type: &str, id: &str) {
        self.reception.triggers.unbind(trigger_type, id);
    }

    fn start(&self) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async move {
            let wanted = self.reception.current().config.address;
            let listening = self.listen_somewhere(&wanted).await?;
            *self.listening.lock().await = Some(listening);
            self.serving.store(true, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }

    fn apply(&self, settings: Settings) -> BoxFuture<'_, Result<(), BuiltinError>> {
        async move {
            let config = settings::parse(settings)?;
            let place = self.place(&config.adapter).await?;
            let mut listening = self.listening.lock().await;
            let other = config.address != self.reception.current().config.address;
            let listens = listening.as_ref().is_some_and(|listening| !listening.is_ending());
            if self.serving.load(Ordering::Relaxed) && (other || !listens) {
                self.relisten(&mut listening, &config.address).await?;
            }
            drop(listening);
            self.reception.replace(Current { config, place });
            Ok(())
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async move {
            self.serving.store(false, Ordering::Relaxed);
            end(&mut *self.listening.lock().await).await;
            self.reception.stop.cancel();
            self.reception.connections.close();
            if timeout(ENDING, self.reception.connections.wait()).await.is_err() {
                warn!("handlers of `stream:leave` did not end in time");
            }
        }
        .boxed()
    }
}

fn trigger_type(id: &str, description: &str, config: &Value) -> RegisterTriggerType {
    RegisterTriggerType {
        id: id.to_owned(),
        description: Some(description.to_owned()),
        trigger_request_format: to_raw_value(config).ok(),
        call_request_format: None,
    }
}
