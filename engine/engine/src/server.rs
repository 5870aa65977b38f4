//! Listeners, the three paths, and the engine's life.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, io};

use axum::Router as Routes;
use axum::extract::{Path as UrlPath, Query, State, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use engine_protocol::{Direction, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::children::Children;
use crate::config::{Config, Listener};
use crate::hub::{Hub, Origin};
use crate::progress::{Noting, Progress};
use crate::upgrade::Upgrade;
use crate::vms::{Seat, VmSocket, accept_vms};
use crate::{channels, frames, peer, sys};

/// How long an upgraded connection may take to say what it wants.
pub(crate) const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// After a failed `accept`. Out of descriptors, most likely: they come back when somebody leaves.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("could not listen on {host}:{port}")]
    Listen { host: String, port: u16, source: io::Error },
    #[error("could not listen on socket {}", path.display())]
    VmSocket { path: PathBuf, source: io::Error },
    #[error("could not start {program}")]
    Child { program: String, source: io::Error },
    #[error("could not prepare the home {}", path.display())]
    Home { path: PathBuf, source: io::Error },
}

impl EngineError {
    /// The reader's next step, where we know one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { port, source, .. } if source.kind() == io::ErrorKind::AddrInUse => Some(format!(
                "another engine may be running: stop it, or set another `port` than {port} under `iii-worker-manager`"
            )),
            Self::Child { .. } => Some("the programs of one build belong in one folder; see III_BIN_DIR".into()),
            Self::Listen { .. } | Self::VmSocket { .. } | Self::Home { .. } => None,
        }
    }
}

/// What a connection is served with.
#[derive(Clone)]
pub(crate) struct Shared {
    hub: Arc<Hub>,
    pub(crate) origin: Origin,
    /// Of this connection's socket.
    progress: Progress,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn of(hub: Arc<Hub>) -> Self {
        Self { hub, origin: Origin::default(), progress: Progress::new(), stop: CancellationToken::new() }
    }
}

/// Listens, starts the daemons, and serves until `stop` is cancelled; then takes everything down.
///
/// # Errors
/// What could not be started; nothing is left running then.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), EngineError> {
    sys::raise_open_files();
    sys::keep_freed_memory();
    let hub = Hub::new();
    let mut tasks = JoinSet::new();
    // Peers outlive `stop`: the daemons still have things to say while they end.
    let shared = Shared::of(Arc::clone(&hub));
    let peers_stop = shared.stop.clone();
    let mut ports = Vec::new();
    for Listener { host, port } in &config.listeners {
        let listen = |source| EngineError::Listen { host: host.clone(), port: *port, source };
        let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        ports.push(address.port());
        info!(%address, "listening");
        tasks.spawn(accept_tcp(listener, shared.clone()));
    }
    let port = ports.first().copied().unwrap_or_default();
    let socket = VmSocket::bind(port)?;
    let listener = socket.listen()?;
    tasks.spawn(accept_vms(listener, shared.clone()));
    tasks.spawn(tick(Arc::clone(&hub), peers_stop.clone()));
    let mut children = Children::new(port, socket.path.clone());
    let started = children.start(&config).await;
    if started.is_ok() {
        stop.cancelled().await;
        info!("stopping");
    }
    children.stop().await;
    peers_stop.cancel();
    tasks.shutdown().await;
    started
}

async fn tick(hub: Arc<Hub>, stop: CancellationToken) {
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        hub.tick();
    }
}

/// Accepts workers until `stop`, then waits for their connections to end.
pub(crate) async fn accept_tcp(listener: TcpListener, shared: Shared) {
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(_) = peers.join_next() => {}
            // Cancel safe: dropping an `accept` loses no connection.
            accepted = listener.accept() => match accepted {
                Ok((socket, address)) => {
                    let _ = socket.set_nodelay(true);
                    let origin = Origin { address: Some(address.ip().to_string()), ..Origin::default() };
                    peers.spawn(http(socket, None, Shared { origin, ..shared.clone() }));
                }
                Err(error) => {
                    warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    peers.shutdown().await;
}

/// Serves a connection's request; what it is upgraded to goes on by itself. The seat is the socket's, until its end.
pub(crate) async fn http(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    seat: Option<Seat>,
    shared: Shared,
) {
    let stop = shared.stop.clone();
    let progress = Progress::new();
    let socket = Noting::new(socket, progress.clone(), seat);
    let shared = Shared { progress, ..shared };
    let routes = Routes::new()
        .route("/", get(control))
        .route("/otel", get(telemetry))
        .route("/ws/channels/{id}", get(channel))
        .with_state(shared);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes))
        .with_upgrades();
    // An error here is a peer that went away in the middle of its request.
    let _ = stop.run_until_cancelled(connection).await;
}

async fn control(upgrade: Upgrade, State(shared): State<Shared>) -> Response {
    upgrade.serve(move |socket| peer::serve(socket, shared.progress, shared.hub, shared.origin, shared.stop))
}

/// Every worker may hold one beside its own, and says little on it.
async fn telemetry(upgrade: WebSocketUpgrade, State(shared): State<Shared>) -> Response {
    upgrade
        .read_buffer_size(frames::QUIET_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .on_upgrade(move |socket| peer::telemetry(socket, shared.stop))
}

#[derive(Deserialize)]
struct ChannelQuery {
    key: String,
    dir: Direction,
}

async fn channel(
    UrlPath(id): UrlPath<String>,
    query: Query<ChannelQuery>,
    upgrade: WebSocketUpgrade,
    State(shared): State<Shared>,
) -> Response {
    match shared.hub.channels.attach(&id, &query.key, query.dir) {
        None => (StatusCode::NOT_FOUND, "Channel not found").into_response(),
        Some(end) => upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_FRAME_BYTES).on_upgrade(
            move |socket| async move {
                shared.stop.run_until_cancelled(channels::carry(socket, end)).await;
            },
        ),
    }
}

/// `III_HOME`, or `~/.iii`.
pub(crate) fn home() -> PathBuf {
    env::var_os("III_HOME")
        .map_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".iii"), PathBuf::from)
}
