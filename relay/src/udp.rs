//! Datagrams: one host socket per guest port and destination, forgotten when idle.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::dns;
use crate::packet::{Addressing, Ends};
use crate::policy::{HostTarget, Policy, Verdict};

/// A flow that says nothing for this long is over.
const IDLE: Duration = Duration::from_secs(60);

const MAX_FLOWS: usize = 256;

/// Queries under way at once.
const MAX_QUERIES: usize = 64;

const DNS_PORT: u16 = 53;

pub(crate) struct Udp {
    addressing: Addressing,
    gateway: Ipv4Addr,
    policy: Policy,
    resolvers: Arc<[SocketAddr]>,
    to_guest: mpsc::Sender<Vec<u8>>,
    flows: HashMap<Ends, Flow>,
    tasks: JoinSet<()>,
    queries: JoinSet<()>,
    next_ident: u16,
}

struct Flow {
    /// For sending: the other handle of this socket knows its readiness only some time after it was made.
    socket: std::net::UdpSocket,
    used: Instant,
    task: tokio::task::AbortHandle,
}

impl Udp {
    pub(crate) fn new(
        addressing: Addressing,
        gateway: Ipv4Addr,
        policy: Policy,
        resolvers: Vec<SocketAddr>,
        to_guest: mpsc::Sender<Vec<u8>>,
    ) -> Self {
        Self {
            addressing,
            gateway,
            policy,
            resolvers: resolvers.into(),
            to_guest,
            flows: HashMap::new(),
            tasks: JoinSet::new(),
            queries: JoinSet::new(),
            next_ident: 1,
        }
    }

    /// Passes a datagram on. `false`: it was dropped.
    pub(crate) fn send(&mut self, ends: Ends, payload: &[u8]) -> bool {
        while self.queries.try_join_next().is_some() {}
        while self.tasks.try_join_next().is_some() {}
        if ends.port == DNS_PORT {
            return self.query(ends, payload);
        }
        if !self.flows.contains_key(&ends) && !self.open(ends) {
            return false;
        }
        let Some(flow) = self.flows.get_mut(&ends) else { return false };
        flow.used = Instant::now();
        // A full socket drops, as a network does.
        flow.socket.send(payload).is_ok()
    }

    fn query(&mut self, ends: Ends, payload: &[u8]) -> bool {
        if self.queries.len() >= MAX_QUERIES {
            return false;
        }
        let (resolvers, query) = (Arc::clone(&self.resolvers), payload.to_vec());
        let (to_guest, addressing, ident) = (self.to_guest.clone(), self.addressing, self.ident());
        self.queries.spawn(async move {
            if let Some(answer) = dns::resolve(&resolvers, &query).await {
                for frame in addressing.datagram(ends, ident, &answer) {
                    let _ = to_guest.send(frame).await;
                }
            }
        });
        true
    }

    fn open(&mut self, ends: Ends) -> bool {
        let destination = match self.policy.judge(ends.address, ends.port) {
            Verdict::Address(address) => SocketAddr::from((address, ends.port)),
            Verdict::Target(HostTarget::Loopback(port)) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            Verdict::Target(HostTarget::Unix { .. }) | Verdict::Denied => return false,
        };
        let now = Instant::now();
        self.flows.retain(|_, flow| {
            let keep = now.duration_since(flow.used) < IDLE;
            if !keep {
                flow.task.abort();
            }
            keep
        });
        if self.flows.len() >= MAX_FLOWS
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(ends, _)| *ends)
            && let Some(flow) = self.flows.remove(&oldest)
        {
            flow.task.abort();
        }
        let Ok((socket, receiver)) = connect(destination) else { return false };
        let receiving = receive(receiver, ends, self.addressing, self.ident(), self.to_guest.clone());
        let task = self.tasks.spawn(receiving);
        self.flows.insert(ends, Flow { socket, used: now, task });
        true
    }

    fn ident(&mut self) -> u16 {
        self.next_ident = self.next_ident.wrapping_add(1);
        self.next_ident
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}

/// Two handles of one socket, neither of which blocks.
fn connect(destination: SocketAddr) -> std::io::Result<(std::net::UdpSocket, UdpSocket)> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(destination)?;
    socket.set_nonblocking(true)?;
    let receiver = UdpSocket::from_std(socket.try_clone()?)?;
    Ok((socket, receiver))
}

async fn receive(socket: UdpSocket, ends: Ends, addressing: Addressing, first: u16, to_guest: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; 65_535];
    let mut ident = first;
    // An error is an ICMP answer to an earlier datagram: the flow goes on.
    loop {
        if let Ok(length) = socket.recv(&mut buffer).await {
            ident = ident.wrapping_add(1);
            for frame in addressing.datagram(ends, ident, &buffer[..length]) {
                if to_guest.send(frame).await.is_err() {
                    return;
                }
            }
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
