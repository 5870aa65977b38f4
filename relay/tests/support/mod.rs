//! A pretend guest, with a TCP/IP stack of its own, against the relay and real host sockets.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use relay::{Config, Egress, GatewayPort, HostTarget, MacAddress};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use tokio_util::sync::CancellationToken;

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The gateway's one open port.
pub(crate) const OPEN: u16 = 4000;

/// Starts a relay whose gateway port leads to `target`; it ends when the guest's side is dropped.
pub(crate) fn guest_to(target: HostTarget, resolver: Option<std::net::SocketAddr>) -> Guest {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    let config = Config {
        guest_mac: MacAddress([2, 0, 0, 0, 0, 2]),
        guest_address: GUEST,
        gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        gateway_address: GATEWAY,
        prefix_len: 30,
        egress: Egress { gateway: vec![GatewayPort { port: OPEN, target }], private: false, public: false },
        resolvers: resolver.into_iter().collect(),
    };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _ = runtime.block_on(relay::run(host, config, CancellationToken::new()));
    });
    Guest::new(guest)
}

/// Serves one connection on loopback.
pub(crate) fn server(serve: impl FnOnce(std::net::TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (port, thread::spawn(move || serve(listener.accept().expect("a connection").0)))
}

pub(crate) struct Guest {
    interface: Interface,
    card: Card,
    pub(crate) sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    fn new(link: UnixStream) -> Self {
        link.set_nonblocking(true).expect("non-blocking");
        let mut card = Card { link, unread: Vec::new(), inbound: VecDeque::new() };
        let config = InterfaceConfig::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 2])));
        let mut interface = Interface::new(config, &mut card, Moment::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 30)).expect("room"));
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room");
        Self { interface, card, sockets: SocketSet::new(Vec::new()), start: Instant::now(), next_port: 40_000 }
    }

    pub(crate) fn poll(&mut self) {
        let now = Moment::from_micros(i64::try_from(self.start.elapsed().as_micros()).expect("a time"));
        self.card.fill();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    pub(crate) fn until<T>(&mut self, what: &str, mut step: impl FnMut(&mut SocketSet<'static>) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if let Some(done) = step(&mut self.sockets) {
                self.poll();
                return done;
            }
            assert!(Instant::now() < deadline, "never: {what}");
            thread::sleep(Duration::from_micros(50));
        }
    }

    pub(crate) fn connect(&mut self, address: Ipv4Addr, port: u16) -> SocketHandle {
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        // A window without scaling, which is rounded: this guest's stack is the relay's, without what mends it there.
        let handle = self.sockets.add(tcp::Socket::new(buffer(65_535), buffer(256 * 1024)));
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (IpAddress::from(address), port), self.next_port).expect("connecting");
        handle
    }

    /// Whether the connection was made; `false` is a refusal.
    pub(crate) fn connected(&mut self, address: Ipv4Addr, port: u16) -> Option<SocketHandle> {
        let handle = self.connect(address, port);
        self.until("an answer to the SYN", |sockets| match sockets.get::<tcp::Socket<'_>>(handle).state() {
            tcp::State::Established | tcp::State::CloseWait => Some(Some(handle)),
            tcp::State::Closed => Some(None),
            _ => None,
        })
    }

    pub(crate) fn send(&mut self, handle: SocketHandle, mut data: &[u8]) {
        while !data.is_empty() {
            let sent = self.until("room to send", |sockets| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
                socket.can_send().then(|| socket.send_slice(data).expect("sent"))
            });
            data = &data[sent..];
        }
    }

    pub(crate) fn finish(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
    }

    /// Everything up to the peer's end of data.
    pub(crate) fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = self.until("data or its end", |sockets| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
                if socket.can_recv() {
                    return Some(Some(socket.recv(|data| (data.len(), data.to_vec())).expect("received")));
                }
                (!socket.may_recv()).then_some(None)
            });
            match piece {
                Some(piece) => all.extend_from_slice(&piece),
                None => return all,
            }
        }
    }
}

/// The guest's network card: frames behind a length, on a socket.
struct Card {
    link: UnixStream,
    unread: Vec<u8>,
    inbound: VecDeque<Vec<u8>>,
}

impl Card {
    fn fill(&mut self) {
        let mut buffer = [0; 65_536];
        loop {
            match self.link.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => self.unread.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(header) = self.unread.first_chunk::<4>() {
            let length = u32::from_be_bytes(*header) as usize;
            if self.unread.len() < 4 + length {
                break;
            }
            self.inbound.push_back(self.unread[4..4 + length].to_vec());
            self.unread.drain(..4 + length);
        }
    }

    fn write(&mut self, frame: &[u8]) {
        let mut bytes = u32::try_from(frame.len()).expect("a length").to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.link.write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.fill();
                    thread::sleep(Duration::from_micros(20));
                }
                Err(_) => return,
            }
        }
    }
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut Card);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.write(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Moment) -> Option<(In, Out<'_>)> {
        let frame = self.inbound.pop_front()?;
        Some((In(frame), Out(self)))
    }

    fn transmit(&mut self, _: Moment) -> Option<Out<'_>> {
        Some(Out(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&state.to_be_bytes());
    }
    data.truncate(length);
    data
}
