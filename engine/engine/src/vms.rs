//! Connections from our VMs: a Unix socket, and a first line that says whose connection it is.
//!
//! ```text
//! guest ── TCP ──► relay in iii-vm ── {"worker":"name"}⏎, then what the guest says ──► this socket
//! ```
//! The line is the relay's: a guest cannot write it, and so cannot be another. It is also what connections are counted
//! by, so that one guest does not use up the descriptors of all.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tracing::warn;

use crate::hub::Origin;
use crate::live::EngineError;
use crate::server::{ACCEPT_PAUSE, REQUEST_PATIENCE, Shared, home, http};

/// Connections of one VM's worker at a time: for control, telemetry, and each end of a channel.
const MAX_CONNECTIONS: usize = 32;

/// Longest first line on the socket of our VMs.
const MAX_PREFACE_BYTES: usize = 4096;

/// Accepts our own VMs: who calls is said by the relay in the first line, not by the guest.
pub(crate) async fn accept_vms(listener: UnixListener, shared: Shared) {
    let seats = Seats::default();
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(_) = peers.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    peers.spawn(vm(socket, seats.clone(), shared.clone()));
                }
                Err(error) => {
                    // As on TCP: without the pause this would go round as fast as it can.
                    warn!(%error, "could not accept a VM's connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    peers.shutdown().await;
}

async fn vm(mut socket: UnixStream, seats: Seats, mut shared: Shared) {
    #[derive(Deserialize)]
    struct Preface {
        worker: String,
        #[serde(default)]
        isolation: Option<String>,
    }
    let line = tokio::time::timeout(REQUEST_PATIENCE, first_line(&mut socket)).await;
    let Ok(Ok(line)) = line else { return };
    match serde_json::from_slice::<Preface>(&line) {
        Ok(preface) => {
            let Some(seat) = seats.take(&preface.worker) else { return };
            let origin = Origin { vm_worker: Some(preface.worker), isolation: preface.isolation, ..Origin::default() };
            shared.origin = origin;
            http(socket, Some(seat), shared).await;
        }
        Err(error) => warn!(%error, "a connection on the VM socket does not say who it is"),
    }
}

async fn first_line(socket: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        match socket.read_u8().await? {
            b'\n' => return Ok(line),
            _ if line.len() == MAX_PREFACE_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
}

/// How many connections each VM's worker has.
#[derive(Clone, Default)]
struct Seats(Arc<Mutex<HashMap<String, Count>>>);

#[derive(Default)]
struct Count {
    open: usize,
    /// Whether the log has been told of a refusal: a guest could fill it.
    told: bool,
}

/// One connection's place; free again when this is dropped.
pub(crate) struct Seat {
    seats: Seats,
    worker: String,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, worker: &str) -> Option<Seat> {
        let mut counts = self.lock();
        let count = counts.entry(worker.to_owned()).or_default();
        if count.open == MAX_CONNECTIONS {
            if !std::mem::replace(&mut count.told, true) {
                warn!(worker, limit = MAX_CONNECTIONS, "a VM's worker has too many connections, the next are refused");
            }
            return None;
        }
        count.open += 1;
        Some(Seat { seats: self.clone(), worker: worker.to_owned() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.seats.lock();
        if let Some(count) = counts.get_mut(&self.worker) {
            count.open -= 1;
            if count.open == 0 {
                counts.remove(&self.worker);
            }
        }
    }
}

/// The socket that relays of our VMs connect to. Its file goes when the engine goes.
pub(crate) struct VmSocket {
    pub(crate) path: PathBuf,
}

impl VmSocket {
    pub(crate) fn bind(port: u16) -> Result<Self, EngineError> {
        let home = home();
        let run = home.join("run");
        let private =
            fs::create_dir_all(&run).and_then(|()| fs::set_permissions(&home, fs::Permissions::from_mode(0o700)));
        private.map_err(|source| EngineError::Home { path: home, source })?;
        Ok(Self { path: run.join(format!("engine-{port}.sock")) })
    }

    pub(crate) fn listen(&self) -> Result<UnixListener, EngineError> {
        let failed = |source| EngineError::VmSocket { path: self.path.clone(), source };
        // We hold the port of that number, so no other engine of ours is using this file.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.path).map_err(failed)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(listener)
    }
}

impl Drop for VmSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio_tungstenite::{WebSocketStream, client_async};

    use super::*;
    use crate::hub::Hub;
    use crate::listener::Listener;
    use tokio_util::sync::CancellationToken;

    /// A control connection of a VM's worker, unless it is refused.
    async fn connect(listening: &std::path::Path, worker: &str) -> Option<WebSocketStream<UnixStream>> {
        let mut socket = UnixStream::connect(listening).await.expect("the engine listens");
        // One that is refused may be gone already.
        let _ = socket.write_all(format!("{{\"worker\":\"{worker}\"}}\n").as_bytes()).await;
        client_async("ws://engine/", socket).await.ok().map(|(socket, _)| socket)
    }

    #[tokio::test]
    async fn a_guest_has_so_many_connections_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut tasks = JoinSet::new();
        tasks.spawn(accept_vms(
            listener,
            Shared::new(
                Hub::new(),
                Arc::default(),
                Listener::parse(None).expect("a listener"),
                CancellationToken::new(),
            ),
        ));
        let mut open = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            open.push(connect(&path, "mine").await.expect("a connection"));
        }
        assert!(connect(&path, "mine").await.is_none());
        assert!(connect(&path, "another").await.is_some());
        drop(open.pop());
        // The engine notices that one has gone when it gets to it.
        let coming_back = async { while connect(&path, "mine").await.is_none() {} };
        tokio::time::timeout(Duration::from_secs(20), coming_back).await.expect("a place is free again");
    }
}
