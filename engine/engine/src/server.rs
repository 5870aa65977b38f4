//! Connections that come in, and the three paths they ask for.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router as Routes;
use axum::extract::ws::Message as Frame;
use axum::extract::{Path as UrlPath, Query, RawQuery, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use engine_protocol::{Direction, ErrorMessage, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Message};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::access::{Access, Services};
use crate::hub::{Hub, Origin};
use crate::listener::Listener;
use crate::progress::{Noting, Progress};
use crate::upgrade::Upgrade;
use crate::vms::Seat;
use crate::{channels, frames, peer};

/// How long an upgraded connection may take to say what it wants.
pub(crate) const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// After a failed `accept`. Out of descriptors, most likely: they come back when somebody leaves.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection is served with.
#[derive(Clone)]
pub(crate) struct Shared {
    hub: Arc<Hub>,
    services: Arc<Services>,
    /// Where it came in.
    listener: Arc<Listener>,
    pub(crate) origin: Origin,
    /// Of this connection's socket.
    progress: Progress,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(hub: Arc<Hub>, services: Arc<Services>, listener: Listener, stop: CancellationToken) -> Self {
        let (listener, origin) = (Arc::new(listener), Origin::default());
        Self { hub, services, listener, origin, progress: Progress::new(), stop }
    }

    /// Decides on a new connection.
    ///
    /// # Errors
    /// What it is to be told.
    async fn admit(&mut self, headers: &HeaderMap, query: Option<&str>) -> Result<Access, Message> {
        let (address, query) = (self.origin.address.as_deref(), query.unwrap_or_default());
        let admitted =
            Access::admit(&self.hub, &self.listener, Arc::clone(&self.services), headers, query, address).await;
        match admitted {
            Ok((access, session)) => {
                self.origin.session = session;
                Ok(access)
            }
            Err(error) => {
                debug!(code = error.code, reason = error.message, "connection refused");
                Err(Message::Error(ErrorMessage { error }))
            }
        }
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

async fn control(
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    State(mut shared): State<Shared>,
    upgrade: Upgrade,
) -> Response {
    upgrade.serve(move |socket| async move {
        match shared.admit(&headers, query.as_deref()).await {
            Ok(access) => peer::serve(socket, shared.progress, shared.hub, access, shared.origin, shared.stop).await,
            Err(why) => peer::refuse(socket, why).await,
        }
    })
}

/// Every worker may hold one beside its own, and says little on it.
async fn telemetry(
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    State(mut shared): State<Shared>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade
        .read_buffer_size(frames::QUIET_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .on_upgrade(move |mut socket| async move {
            match shared.admit(&headers, query.as_deref()).await {
                Ok(access) => peer::telemetry(socket, access, shared.stop).await,
                Err(why) => {
                    let _ = socket.send(Frame::Text(why.encode().into())).await;
                    let _ = socket.send(Frame::Close(None)).await;
                }
            }
        })
}

#[derive(Deserialize)]
struct ChannelQuery {
    key: String,
    dir: Direction,
}

async fn channel(
    UrlPath(id): UrlPath<String>,
    query: Query<ChannelQuery>,
    State(shared): State<Shared>,
    upgrade: Upgrade,
) -> Response {
    match shared.hub.channels.attach(&id, &query.key, query.dir) {
        None => (StatusCode::NOT_FOUND, "Channel not found").into_response(),
        Some(end) => upgrade.serve(move |connection| async move {
            shared.stop.run_until_cancelled(channels::carry(connection, end)).await;
        }),
    }
}

/// `III_HOME`, or `~/.iii`.
pub(crate) fn home() -> PathBuf {
    env::var_os("III_HOME")
        .map_or_else(|| Path::new(&env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".iii"), PathBuf::from)
}
