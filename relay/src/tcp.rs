//! Connections: a smoltcp socket towards the guest, a task with the host's socket, and two short queues in between.
//!
//! ```text
//!              SYN held                 host connected            both sides finished, or reset
//!  (unknown) ──────────► Connecting ──────────────────► Open ───────────────────────────────────► (gone)
//!                            │ refused: RST to the guest
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::IpListenEndpoint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::MAX_FLOWS;
use crate::packet::Ends;
use crate::policy::{HostTarget, Policy, Verdict};

/// Each way, inside the stack; what is in flight for a fast guest.
const BUFFER_BYTES: usize = 256 * 1024;

/// Pieces that wait between stack and host socket, each way.
const QUEUE_PIECES: usize = 8;
const PIECE_BYTES: usize = 64 * 1024;

const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Tcp {
    policy: Policy,
    resolvers: Vec<SocketAddr>,
    flows: HashMap<Ends, Flow>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<Event>,
    wake: Arc<Notify>,
}

/// What a flow's task says.
pub(crate) enum Event {
    Connected(Ends),
    Refused(Ends),
}

enum Flow {
    Connecting { syn: Vec<u8>, sequence: u32, task: AbortHandle, queues: Option<Queues> },
    Open(Box<Open>),
}

struct Queues {
    to_host: mpsc::Sender<ToHost>,
    from_host: mpsc::Receiver<FromHost>,
}

enum ToHost {
    Data(Bytes),
    /// The guest will send no more.
    End,
}

enum FromHost {
    Data(Bytes),
    /// The host's peer will send no more.
    End,
    Reset,
}

struct Open {
    handle: SocketHandle,
    queues: Queues,
    task: AbortHandle,
    /// Data that the stack had no room for yet.
    pending: Bytes,
    host_ended: bool,
    guest_ended: bool,
    used: Instant,
}

impl Tcp {
    pub(crate) fn new(
        policy: Policy,
        resolvers: Vec<SocketAddr>,
        events: mpsc::Sender<Event>,
        wake: Arc<Notify>,
    ) -> Self {
        Self { policy, resolvers, flows: HashMap::new(), tasks: JoinSet::new(), events, wake }
    }

    /// Takes a SYN. `Some(sequence)`: refuse it now. A repeated SYN of a connection that is being made waits with it.
    pub(crate) fn syn(&mut self, ends: Ends, sequence: u32, frame: &[u8], sockets: &mut SocketSet<'_>) -> Syn {
        match self.flows.get(&ends) {
            Some(Flow::Connecting { .. }) => return Syn::Held,
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
        if self.flows.len() >= MAX_FLOWS {
            self.drop_longest_idle(sockets);
        }
        while self.tasks.try_join_next().is_some() {}
        let (to_host, from_stack) = mpsc::channel(QUEUE_PIECES);
        let (to_stack, from_host) = mpsc::channel(QUEUE_PIECES);
        let host = HostSide { ends, from_stack, to_stack, events: self.events.clone(), wake: Arc::clone(&self.wake) };
        let task = self.tasks.spawn(host.run(target));
        let queues = Some(Queues { to_host, from_host });
        self.flows.insert(ends, Flow::Connecting { syn: frame.to_vec(), sequence, task, queues });
        Syn::Held
    }

    fn drop_longest_idle(&mut self, sockets: &mut SocketSet<'_>) {
        let used = |flow: &Flow| match flow {
            Flow::Open(open) => Some(open.used),
            Flow::Connecting { .. } => None,
        };
        let oldest = self.flows.iter().filter_map(|(ends, flow)| Some((used(flow)?, *ends)));
        if let Some((_, ends)) = oldest.min_by_key(|(used, _)| *used)
            && let Some(Flow::Open(open)) = self.flows.remove(&ends)
        {
            open.task.abort();
            sockets.remove(open.handle);
        }
    }

    /// The host's connection is made: a socket now waits for the held SYN, which is returned to be let in.
    pub(crate) fn connected(&mut self, ends: Ends, sockets: &mut SocketSet<'_>) -> Option<Vec<u8>> {
        let Some(Flow::Connecting { syn, task, queues, .. }) = self.flows.get_mut(&ends) else { return None };
        let (syn, task, queues) = (std::mem::take(syn), task.clone(), queues.take()?);
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; BUFFER_BYTES]), SocketBuffer::new(vec![0; BUFFER_BYTES]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let listening = socket.listen(IpListenEndpoint { addr: Some(ends.address.into()), port: ends.port });
        if listening.is_err() {
            self.flows.remove(&ends);
            return None;
        }
        let handle = sockets.add(socket);
        let open = Open {
            handle,
            queues,
            task,
            pending: Bytes::new(),
            host_ended: false,
            guest_ended: false,
            used: Instant::now(),
        };
        self.flows.insert(ends, Flow::Open(Box::new(open)));
        Some(syn)
    }

    /// The host's connection was refused: the sequence number to refuse the guest's with.
    pub(crate) fn refused(&mut self, ends: Ends) -> Option<u32> {
        match self.flows.remove(&ends) {
            Some(Flow::Connecting { sequence, .. }) => Some(sequence),
            Some(open @ Flow::Open(_)) => {
                self.flows.insert(ends, open);
                None
            }
            None => None,
        }
    }

    /// Moves data both ways as far as there is room, and forgets what is over. Says whether anything moved.
    pub(crate) fn pump(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let mut moved = false;
        self.flows.retain(|_, flow| {
            let Flow::Open(open) = flow else { return true };
            let socket = sockets.get_mut::<Socket<'_>>(open.handle);
            moved |= open.pass_to_guest(socket);
            moved |= open.pass_to_host(socket);
            if open.over(socket) {
                // After an orderly end the task still has the last pieces to write; it ends by itself.
                if !(open.guest_ended && open.host_ended) {
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

impl Open {
    fn pass_to_guest(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while socket.may_send() && !self.host_ended {
            if self.pending.is_empty() {
                match self.queues.from_host.try_recv() {
                    Ok(FromHost::Data(data)) => self.pending = data,
                    Ok(FromHost::End) | Err(mpsc::error::TryRecvError::Disconnected) => {
                        self.host_ended = true;
                        socket.close();
                        return true;
                    }
                    Ok(FromHost::Reset) => {
                        self.host_ended = true;
                        socket.abort();
                        return true;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                }
            }
            match socket.send_slice(&self.pending) {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    let _ = self.pending.split_to(length);
                    self.used = Instant::now();
                    moved = true;
                }
            }
        }
        moved
    }

    fn pass_to_host(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while socket.can_recv() {
            let Ok(permit) = self.queues.to_host.try_reserve() else { break };
            let mut piece = BytesMut::zeroed(PIECE_BYTES.min(socket.recv_queue()));
            match socket.recv_slice(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    piece.truncate(length);
                    permit.send(ToHost::Data(piece.freeze()));
                    self.used = Instant::now();
                    moved = true;
                }
            }
        }
        // The guest's FIN, once everything before it has been taken.
        let finished = matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
            || (socket.state() == State::Closed && self.host_ended);
        if finished
            && !socket.can_recv()
            && !self.guest_ended
            && let Ok(permit) = self.queues.to_host.try_reserve()
        {
            permit.send(ToHost::End);
            self.guest_ended = true;
            moved = true;
        }
        moved
    }

    /// `Closed` without both ends' FIN is a reset; the host's socket goes with the task. A reset of ours leaves with
    /// the next poll, and until then the socket knows its peer.
    fn over(&self, socket: &Socket<'_>) -> bool {
        let silent = match socket.state() {
            State::Closed => socket.remote_endpoint().is_none(),
            State::TimeWait => self.guest_ended,
            _ => false,
        };
        silent && !socket.can_recv()
    }
}

enum Target {
    Address(SocketAddr),
    Unix(std::path::PathBuf, String),
}

struct HostSide {
    ends: Ends,
    from_stack: mpsc::Receiver<ToHost>,
    to_stack: mpsc::Sender<FromHost>,
    events: mpsc::Sender<Event>,
    wake: Arc<Notify>,
}

impl HostSide {
    async fn run(self, target: Target) {
        let connected = match target {
            Target::Address(address) => self.tcp(address).await,
            Target::Unix(path, preface) => self.unix(&path, &preface).await,
        };
        match connected {
            Some(Socketed::Tcp(stream)) => {
                let (reader, writer) = stream.into_split();
                self.carry(reader, writer).await;
            }
            Some(Socketed::Unix(stream)) => {
                let (reader, writer) = stream.into_split();
                self.carry(reader, writer).await;
            }
            None => {
                let _ = self.events.send(Event::Refused(self.ends)).await;
            }
        }
    }

    async fn tcp(&self, address: SocketAddr) -> Option<Socketed> {
        let stream = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?;
        let _ = stream.set_nodelay(true);
        Some(Socketed::Tcp(stream))
    }

    async fn unix(&self, path: &std::path::Path, preface: &str) -> Option<Socketed> {
        let mut stream = UnixStream::connect(path).await.ok()?;
        stream.write_all(preface.as_bytes()).await.ok()?;
        Some(Socketed::Unix(stream))
    }

    async fn carry(self, reader: impl AsyncRead + Unpin, writer: impl AsyncWrite + Unpin) {
        if self.events.send(Event::Connected(self.ends)).await.is_err() {
            return;
        }
        let Self { from_stack, to_stack, wake, .. } = self;
        tokio::join!(read_host(reader, to_stack, &wake), write_host(writer, from_stack, &wake));
    }
}

enum Socketed {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn read_host(mut reader: impl AsyncRead + Unpin, to_stack: mpsc::Sender<FromHost>, wake: &Notify) {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let said = match reader.read_buf(&mut piece).await {
            Ok(0) => FromHost::End,
            Ok(_) => FromHost::Data(piece.freeze()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => FromHost::Reset,
        };
        let last = !matches!(said, FromHost::Data(_));
        if to_stack.send(said).await.is_err() {
            return;
        }
        wake.notify_one();
        if last {
            return;
        }
    }
}

async fn write_host(mut writer: impl AsyncWrite + Unpin, mut from_stack: mpsc::Receiver<ToHost>, wake: &Notify) {
    while let Some(ToHost::Data(data)) = from_stack.recv().await {
        // There is room in the queue again.
        wake.notify_one();
        if writer.write_all(&data).await.is_err() {
            // The reader sees the reset too, and says so.
            return;
        }
    }
    let _ = writer.shutdown().await;
}
