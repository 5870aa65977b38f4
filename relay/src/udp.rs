//! Datagrams: one host socket per guest port and destination, forgotten when idle.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dns;
use crate::packet::{Addressing, Ends};
use crate::policy::{HostTarget, Policy, Verdict};

/// A flow on which neither side says anything for this long is over.
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
    used: LastUse,
    task: tokio::task::AbortHandle,
}

/// When a flow carried a datagram last, either way.
#[derive(Clone)]
struct LastUse(Arc<Mutex<Instant>>);

impl LastUse {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn renew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let Some(flow) = self.flows.get(&ends) else { return false };
        flow.used.renew();
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
            let keep = now.duration_since(flow.used.at()) < IDLE;
            if !keep {
                flow.task.abort();
            }
            keep
        });
        if self.flows.len() >= MAX_FLOWS
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.used.at()).map(|(ends, _)| *ends)
            && let Some(flow) = self.flows.remove(&oldest)
        {
            flow.task.abort();
        }
        let Ok((socket, receiver)) = connect(destination) else { return false };
        let used = LastUse::now();
        let receiver = Receiver { socket: receiver, ends, used: used.clone(), addressing: self.addressing };
        let receiving = receiver.run(self.ident(), self.to_guest.clone());
        let task = self.tasks.spawn(receiving);
        self.flows.insert(ends, Flow { socket, used, task });
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

/// The task of a flow: what comes from outside.
struct Receiver {
    socket: UdpSocket,
    ends: Ends,
    used: LastUse,
    addressing: Addressing,
}

impl Receiver {
    async fn run(self, first: u16, to_guest: mpsc::Sender<Vec<u8>>) {
        let mut buffer = vec![0; 65_535];
        let mut ident = first;
        // An error is an ICMP answer to an earlier datagram: the flow goes on.
        loop {
            if let Ok(length) = self.socket.recv(&mut buffer).await {
                self.used.renew();
                ident = ident.wrapping_add(1);
                for frame in self.addressing.datagram(self.ends, ident, &buffer[..length]) {
                    if to_guest.send(frame).await.is_err() {
                        return;
                    }
                }
            } else {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Egress, GatewayPort, MacAddress};
    use smoltcp::wire::EthernetAddress;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);

    fn udp(host_port: u16) -> (Udp, mpsc::Receiver<Vec<u8>>) {
        let config = Config {
            guest_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            guest_address: Ipv4Addr::new(100, 96, 0, 2),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            gateway_address: GATEWAY,
            prefix_len: 30,
            egress: Egress {
                gateway: vec![GatewayPort { port: 4000, target: HostTarget::Loopback(host_port) }],
                private: false,
                public: false,
            },
            resolvers: Vec::new(),
        };
        let addressing = Addressing {
            gateway_mac: EthernetAddress(config.gateway_mac.0),
            guest_mac: EthernetAddress(config.guest_mac.0),
            guest: config.guest_address,
        };
        let (to_guest, frames) = mpsc::channel(8);
        (Udp::new(addressing, GATEWAY, Policy::new(&config), Vec::new(), to_guest), frames)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_that_only_hears_is_not_idle() {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (mut udp, mut frames) = udp(peer.local_addr().unwrap().port());
        let ends = |guest_port| Ends { guest_port, address: GATEWAY, port: 4000 };
        for guest_port in [1, 2] {
            assert!(udp.send(ends(guest_port), b"subscribe"));
        }
        let (_, subscriber) = peer.recv_from(&mut [0; 16]).unwrap();
        tokio::time::advance(IDLE * 2 / 3).await;
        peer.send_to(b"news", subscriber).unwrap();
        frames.recv().await.unwrap();
        tokio::time::advance(IDLE * 2 / 3).await;
        // A new flow sweeps those that are over.
        assert!(udp.send(ends(3), b"subscribe"));
        let mut left: Vec<u16> = udp.flows.keys().map(|ends| ends.guest_port).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 3]);
    }
}
