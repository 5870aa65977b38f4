//! The table of connections. Each has a smoltcp socket towards the guest (`flow`), a task with the host's socket
//! (`host`), and two short queues in between.
//!
//! ```text
//!              SYN held                 host connected            both sides finished, or reset
//!  (unknown) ──────────► Connecting ──────────────────► Open ───────────────────────────────────► (gone)
//!                            │ refused: RST to the guest
//!                            └ the guest's RST: as if it had never asked
//! ```

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::IpListenEndpoint;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::MAX_FLOWS;
use crate::flow::Open;
use crate::host::{FromStack, HostSide, QUEUE_PIECES, Queues, Target, ToHost};
use crate::packet::Ends;
use crate::policy::{HostTarget, Policy, Verdict};

/// Each way, inside the stack; what is in flight for a fast guest.
const BUFFER_BYTES: usize = 256 * 1024;

pub(crate) struct Tcp {
    policy: Policy,
    resolvers: Vec<SocketAddr>,
    flows: HashMap<Ends, Flow>,
    finishing: Vec<Finishing>,
    /// Sockets of dropped flows, whose reset leaves with the next poll.
    resetting: Vec<SocketHandle>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<Event>,
    wake: Arc<Notify>,
    attempts: u64,
}

/// One try to make a connection. The guest may use the same ends again before the last try's task was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) ends: Ends,
    number: u64,
}

/// What a flow's task says.
pub(crate) enum Event {
    Connected(Attempt),
    Refused(Attempt),
}

enum Flow {
    Connecting(Connecting),
    Open(Box<Open>),
}

struct Connecting {
    attempt: Attempt,
    syn: Vec<u8>,
    sequence: u32,
    task: AbortHandle,
    queues: Queues,
}

/// A flow whose guest is done, while the host does not yet have everything. It counts, as it holds a host socket.
struct Finishing {
    task: AbortHandle,
    since: Instant,
}

/// What may be dropped for another flow.
enum Idle {
    Open(Ends),
    Finishing(usize),
}

impl Tcp {
    pub(crate) fn new(
        policy: Policy,
        resolvers: Vec<SocketAddr>,
        events: mpsc::Sender<Event>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            policy,
            resolvers,
            flows: HashMap::new(),
            finishing: Vec::new(),
            resetting: Vec::new(),
            tasks: JoinSet::new(),
            events,
            wake,
            attempts: 0,
        }
    }

    /// Takes a SYN. `Some(sequence)`: refuse it now. A repeated SYN of a connection that is being made waits with it.
    pub(crate) fn syn(&mut self, ends: Ends, sequence: u32, frame: &[u8], sockets: &mut SocketSet<'_>) -> Syn {
        match self.flows.get_mut(&ends) {
            Some(Flow::Connecting(connecting)) => {
                // With another number it is a new wish: an answer to the former would be refused.
                (connecting.syn, connecting.sequence) = (frame.to_vec(), sequence);
                return Syn::Held;
            }
            // The guest has forgotten the connection, or lost our answer: the stack knows which.
            Some(Flow::Open(_)) => return Syn::ToStack,
            None => {}
        }
        let target = match self.policy.judge(ends.address, ends.port) {
            // TCP 53 goes where names are resolved, like UDP 53.
            _ if ends.port == 53 && !self.resolvers.is_empty() => Target::Address(self.resolvers[0]),
            Verdict::Address(address) => Target::Address((address, ends.port).into()),
            Verdict::Target(HostTarget::Loopback(port)) => Target::Address((Ipv4Addr::LOCALHOST, port).into()),
            Verdict::Target(HostTarget::Unix { path, preface }) => Target::Unix(path, preface),
            Verdict::Denied => return Syn::Refuse(sequence),
        };
        if !self.has_room(sockets) {
            return Syn::Refuse(sequence);
        }
        let ((pieces, pieces_out), (last, last_out)) = (mpsc::channel(QUEUE_PIECES), oneshot::channel());
        let (to_host, from_stack) = (ToHost { pieces, last }, FromStack { pieces: pieces_out, last: last_out });
        let (to_stack, from_host) = mpsc::channel(QUEUE_PIECES);
        self.attempts += 1;
        let attempt = Attempt { ends, number: self.attempts };
        let host =
            HostSide { attempt, from_stack, to_stack, events: self.events.clone(), wake: Arc::clone(&self.wake) };
        let task = self.tasks.spawn(host.run(target));
        let queues = Queues { to_host, from_host };
        self.flows.insert(ends, Flow::Connecting(Connecting { attempt, syn: frame.to_vec(), sequence, task, queues }));
        Syn::Held
    }

    /// Whether one more flow is within the limit, for which the longest idle one may have to go. Those that are being
    /// made stay: each of them ends by itself within [`CONNECT_PATIENCE`](crate::host::CONNECT_PATIENCE).
    fn has_room(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.finishing.retain(|finishing| !finishing.task.is_finished());
        if self.flows.len() + self.finishing.len() < MAX_FLOWS {
            return true;
        }
        if self.resetting.len() >= MAX_FLOWS {
            return false;
        }
        let open = self.flows.iter().filter_map(|(ends, flow)| match flow {
            Flow::Open(open) => Some((open.used, Idle::Open(*ends))),
            Flow::Connecting(_) => None,
        });
        let finishing = self.finishing.iter().enumerate().map(|(at, flow)| (flow.since, Idle::Finishing(at)));
        match open.chain(finishing).min_by_key(|(since, _)| *since) {
            Some((_, Idle::Open(ends))) => {
                if let Some(Flow::Open(open)) = self.flows.remove(&ends) {
                    open.task.abort();
                    sockets.get_mut::<Socket<'_>>(open.handle).abort();
                    self.resetting.push(open.handle);
                }
                true
            }
            Some((_, Idle::Finishing(at))) => {
                self.finishing.swap_remove(at).task.abort();
                true
            }
            None => false,
        }
    }

    /// Takes a RST. Whether it took back a connection that is still being made; the stack knows the others.
    pub(crate) fn reset(&mut self, ends: Ends, sequence: u32) -> bool {
        let Some(Flow::Connecting(connecting)) = self.flows.get(&ends) else { return false };
        // One that a former connection left behind has another number (RFC 5961, 3.2).
        if sequence != connecting.sequence && sequence != connecting.sequence.wrapping_add(1) {
            return false;
        }
        connecting.task.abort();
        self.flows.remove(&ends);
        true
    }

    /// The connection that an attempt is about, if it still is.
    fn take_connecting(&mut self, attempt: Attempt) -> Option<Connecting> {
        match self.flows.remove(&attempt.ends)? {
            Flow::Connecting(connecting) if connecting.attempt == attempt => Some(connecting),
            other => {
                self.flows.insert(attempt.ends, other);
                None
            }
        }
    }

    /// The host's connection is made: a socket now waits for the held SYN, which is returned to be let in.
    pub(crate) fn connected(&mut self, attempt: Attempt, sockets: &mut SocketSet<'_>) -> Option<Vec<u8>> {
        let Connecting { syn, task, queues, .. } = self.take_connecting(attempt)?;
        let ends = attempt.ends;
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; BUFFER_BYTES]), SocketBuffer::new(vec![0; BUFFER_BYTES]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        if socket.listen(IpListenEndpoint { addr: Some(ends.address.into()), port: ends.port }).is_err() {
            task.abort();
            return None;
        }
        let handle = sockets.add(socket);
        let open = Open::new(handle, queues, task);
        self.flows.insert(ends, Flow::Open(Box::new(open)));
        Some(syn)
    }

    /// The host's connection was refused: the sequence number to refuse the guest's with.
    pub(crate) fn refused(&mut self, attempt: Attempt) -> Option<u32> {
        Some(self.take_connecting(attempt)?.sequence)
    }

    /// Moves data both ways as far as there is room, and forgets what is over. Says whether anything moved.
    pub(crate) fn pump(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let mut moved = false;
        self.resetting.retain(|handle| {
            let left = Open::over(sockets.get::<Socket<'_>>(*handle));
            if left {
                sockets.remove(*handle);
            }
            !left
        });
        let finishing = &mut self.finishing;
        self.flows.retain(|_, flow| {
            let Flow::Open(open) = flow else { return true };
            let socket = sockets.get_mut::<Socket<'_>>(open.handle);
            let passed = open.pass_to_guest(socket) | open.pass_to_host(socket);
            moved |= passed || open.reset_if_broken(socket);
            if Open::over(socket) {
                if open.ended_in_order() {
                    finishing.push(Finishing { task: open.task.clone(), since: Instant::now() });
                } else {
                    open.task.abort();
                }
                sockets.remove(open.handle);
                return false;
            }
            true
        });
        moved
    }
}

/// What becomes of a SYN.
pub(crate) enum Syn {
    Held,
    ToStack,
    Refuse(u32),
}
