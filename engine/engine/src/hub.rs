//! The router behind one lock, and the queue of every connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_protocol::{ErrorBody, Message, Outbound, raw};
use engine_router::{ConnId, Effect, Input, Opened, Router};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::channels::{Channels, Owner};

/// What may wait for one connection; a peer that lets more pile up is cut off.
const MAX_QUEUED_MESSAGES: usize = 65_536;
const MAX_QUEUED_BYTES: usize = 256 * 1024 * 1024;

/// Everything the connections share.
pub(crate) struct Hub {
    state: Mutex<State>,
    next_conn: AtomicU64,
    pub(crate) channels: Channels,
}

struct State {
    router: Router,
    queues: HashMap<ConnId, Queue>,
}

struct Queue {
    sender: mpsc::Sender<Outbound>,
    bytes: Arc<AtomicUsize>,
    stop: CancellationToken,
    /// Whose channels it makes.
    owner: Owner,
}

/// A connection's own end: what is to be sent to it, and when to stop.
pub(crate) struct Seat {
    pub(crate) conn: ConnId,
    pub(crate) outbound: mpsc::Receiver<Outbound>,
    /// Bytes in the queue; the writer takes off what it has sent.
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) stop: CancellationToken,
}

/// Who connects, as far as the socket tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) vm_worker: Option<String>,
    pub(crate) isolation: Option<String>,
    pub(crate) address: Option<String>,
}

impl Hub {
    pub(crate) fn new() -> Arc<Self> {
        let seed = Uuid::new_v4().as_u128() ^ Uuid::new_v4().as_u128().rotate_left(64);
        let state = State { router: Router::new(crate::VERSION, seed), queues: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), next_conn: AtomicU64::new(1), channels: Channels::default() })
    }

    pub(crate) fn open(&self, origin: Origin, stop: &CancellationToken) -> Seat {
        let conn = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
        let (sender, outbound) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let queued = Arc::new(AtomicUsize::new(0));
        let stop = stop.child_token();
        let owner = origin.vm_worker.clone().map_or(Owner::Connection(conn), Owner::Vm);
        let opened = Opened {
            conn,
            worker: Uuid::new_v4(),
            reattach_token: Uuid::new_v4().to_string(),
            vm_worker: origin.vm_worker,
            isolation: origin.isolation,
            address: origin.address,
        };
        let queue = Queue { sender, bytes: Arc::clone(&queued), stop: stop.clone(), owner };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queues.insert(conn, queue);
        self.advance(&mut state, Input::Opened(Box::new(opened)));
        Seat { conn, outbound, queued, stop }
    }

    pub(crate) fn receive(&self, conn: ConnId, message: Message) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.advance(&mut state, Input::Received { conn, message });
    }

    pub(crate) fn close(&self, conn: ConnId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queues.remove(&conn);
        self.advance(&mut state, Input::Closed { conn });
    }

    pub(crate) fn tick(&self) {
        self.channels.expire();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.advance(&mut state, Input::Tick);
    }

    /// Carries out what the router decides; what that leads to, too. Never waits.
    fn advance(&self, state: &mut State, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for effect in state.router.step(unix_ms(), input) {
                match effect {
                    Effect::Send { conn, message } => state.send(conn, message),
                    Effect::Close { conn } => state.cut(conn),
                    Effect::CreateChannel { conn, invocation, buffer } => {
                        let Some(queue) = state.queues.get(&conn) else { continue };
                        let refs = self.channels.create(queue.owner.clone(), buffer).and_then(|pair| {
                            raw(&pair).map_err(|error| ErrorBody::new("serialization_error", error.to_string()))
                        });
                        inputs.push(Input::ChannelCreated { conn, invocation, refs });
                    }
                    Effect::Refused { conn, error } => {
                        warn!(conn = conn.0, code = error.code, reason = error.message, "registration refused");
                    }
                }
            }
        }
    }
}

impl State {
    fn send(&self, conn: ConnId, message: Message) {
        let Some(queue) = self.queues.get(&conn) else { return };
        let text = message.into_outbound();
        let queued = queue.bytes.fetch_add(text.len(), Ordering::Relaxed) + text.len();
        if queued > MAX_QUEUED_BYTES + text.len() || queue.sender.try_send(text).is_err() {
            warn!(conn = conn.0, queued, "worker does not read, connection closed");
            self.cut(conn);
        }
    }

    fn cut(&self, conn: ConnId) {
        if let Some(queue) = self.queues.get(&conn) {
            debug!(conn = conn.0, "connection closed by the engine");
            queue.stop.cancel();
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
