//! Where subscribers come in: one path, `/`, asked for before it is opened.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use engine_builtin::{Engine, Invocation, Raw, Trace};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::adapter::Place;
use crate::settings::Config;
use crate::socket::{self, MAX_FRAME_BYTES, Subscriber};
use crate::triggers::Triggers;

/// Subscribers at once; another is answered 503.
const MAX_SUBSCRIBERS: usize = 16_384;

/// Connections that are not yet a subscriber's; then none is accepted.
const MAX_ENTERING: usize = 1024;

/// For a request to arrive, and for the auth function.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a failed `accept`. Out of descriptors, most likely: they come back when somebody leaves.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What new connections are served with.
pub(crate) struct Reception {
    pub(crate) engine: Engine,
    pub(crate) triggers: Arc<Triggers>,
    current: Mutex<Current>,
    seats: Arc<Semaphore>,
    entering: Arc<Semaphore>,
    pub(crate) connections: TaskTracker,
    /// Ends every connection.
    pub(crate) stop: CancellationToken,
}

/// The settings in use.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) config: Config,
    pub(crate) place: Arc<Place>,
}

#[derive(Clone)]
struct Door {
    reception: Arc<Reception>,
    peer: SocketAddr,
}

/// What the auth function is asked.
#[derive(Serialize)]
struct Arrival<'a> {
    headers: BTreeMap<&'a str, &'a str>,
    path: &'a str,
    query_params: HashMap<String, Vec<String>>,
    addr: String,
}

#[derive(Default, Deserialize)]
struct Welcome {
    context: Option<Raw>,
}

impl Reception {
    pub(crate) fn new(engine: Engine, triggers: Arc<Triggers>, current: Current) -> Arc<Self> {
        Arc::new(Self {
            engine,
            triggers,
            current: Mutex::new(current),
            seats: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
            entering: Arc::new(Semaphore::new(MAX_ENTERING)),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current(&self) -> Current {
        self.lock().clone()
    }

    pub(crate) fn replace(&self, current: Current) {
        *self.lock() = current;
    }
}

/// Accepts until `stop`. Connections go on without it.
pub(crate) async fn accept(listener: TcpListener, reception: Arc<Reception>, stop: CancellationToken) {
    let accepting = async {
        loop {
            let Ok(entering) = Arc::clone(&reception.entering).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, peer)) => {
                    let _ = socket.set_nodelay(true);
                    let door = Door { reception: Arc::clone(&reception), peer };
                    reception.connections.spawn(async move {
                        http(socket, door).await;
                        drop(entering);
                    });
                }
                Err(error) => {
                    warn!(%error, "could not accept a subscriber");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
}

/// Serves a connection's requests; what it is upgraded to goes on by itself.
async fn http(socket: TcpStream, door: Door) {
    let stop = door.reception.stop.clone();
    let routes = Router::new().route("/", get(enter)).with_state(door);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes))
        .with_upgrades();
    // An error here is a peer that went away in the middle of its request.
    let _ = stop.run_until_cancelled(connection).await;
}

async fn enter(State(door): State<Door>, uri: Uri, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let Door { reception, peer } = door;
    let Ok(seat) = Arc::clone(&reception.seats).try_acquire_owned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let Ok(context) = welcome(&reception, peer, &uri, &headers).await else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let Current { config, place } = reception.current();
    let subscriber = Subscriber {
        engine: Arc::clone(&reception.engine),
        triggers: Arc::clone(&reception.triggers),
        place,
        channel_size: config.channel_size,
        context,
        stop: reception.stop.clone(),
    };
    let connections = reception.connections.clone();
    upgrade.max_message_size(MAX_FRAME_BYTES).max_frame_size(MAX_FRAME_BYTES).on_upgrade(move |socket| {
        connections.track_future(async move {
            socket::serve(socket, subscriber).await;
            drop(seat);
        })
    })
}

struct Refused;

/// Asks the auth function, if there is one. Whatever it fails for, and what it answers that is no welcome, is refused.
async fn welcome(
    reception: &Reception,
    peer: SocketAddr,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Raw>, Refused> {
    let Some(function_id) = reception.current().config.auth_function else { return Ok(None) };
    let arrival = Arrival {
        headers: headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect(),
        path: uri.path(),
        query_params: query_params(uri),
        addr: peer.to_string(),
    };
    let data = serde_json::value::to_raw_value(&arrival).expect("maps of strings");
    let call = reception.engine.call(Invocation { function_id, data, trace: Trace::default() });
    let answer = match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            debug!(%error, %peer, "a subscriber is refused");
            return Err(Refused);
        }
        Err(_) => {
            warn!(%peer, "a subscriber is refused: the auth function did not answer in time");
            return Err(Refused);
        }
    };
    let text = answer.as_ref().map_or("null", |answer| answer.get());
    let welcome: Option<Welcome> = serde_json::from_str(text).map_err(|error| {
        warn!(%error, %peer, "a subscriber is refused: the auth function's answer is no welcome");
        Refused
    })?;
    Ok(welcome.unwrap_or_default().context)
}

fn query_params(uri: &Uri) -> HashMap<String, Vec<String>> {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else { return HashMap::new() };
    let mut params: HashMap<String, Vec<String>> = HashMap::new();
    for (name, value) in pairs {
        params.entry(name).or_default().push(value);
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_params_are_lists_and_decoded() {
        let params = query_params(&"/?tag=a&tag=b%20c&bare".parse().expect("a URI"));
        assert_eq!(params["tag"], ["a", "b c"]);
        assert_eq!(params["bare"], [""]);
        assert!(query_params(&"/".parse().expect("a URI")).is_empty());
    }
}
