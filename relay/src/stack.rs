//! The loop: frames in, sorted; the stack polled; frames out.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::link::{self, QUEUE_FRAMES};
use crate::packet::{Addressing, Sorted, fin_apart, sort};
use crate::policy::{Config, Policy};
use crate::tcp::{Event, Syn, Tcp};
use crate::udp::Udp;
use crate::{dns, packet};

const MTU: usize = 1500;

/// Frames taken from the guest before the stack is polled again.
const BATCH: usize = 64;

/// Carries a guest's traffic until the link ends or `stop` is cancelled. Dropping the future ends every flow.
pub async fn run(link: StdUnixStream, config: Config, stop: CancellationToken) -> std::io::Result<()> {
    link.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(link)?.into_split();
    let (frames_in, inbound) = mpsc::channel(QUEUE_FRAMES);
    let (to_guest, frames_out) = mpsc::channel(QUEUE_FRAMES);
    let stack = Stack::new(&config, inbound, to_guest);
    tokio::select! {
        ended = link::read(reader, frames_in) => { ended?; Ok(()) }
        ended = link::write(writer, frames_out) => { ended?; Ok(()) }
        () = stack.run() => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

struct Stack {
    interface: Interface,
    device: Queues,
    sockets: SocketSet<'static>,
    tcp: Tcp,
    udp: Udp,
    inbound: mpsc::Receiver<Vec<u8>>,
    to_guest: mpsc::Sender<Vec<u8>>,
    events: mpsc::Receiver<Event>,
    wake: Arc<Notify>,
    addressing: Addressing,
    guest: std::net::Ipv4Addr,
    start: std::time::Instant,
}

impl Stack {
    fn new(config: &Config, inbound: mpsc::Receiver<Vec<u8>>, to_guest: mpsc::Sender<Vec<u8>>) -> Self {
        let mut device = Queues::default();
        let gateway_mac = EthernetAddress(config.gateway_mac.0);
        let mut settings = InterfaceConfig::new(HardwareAddress::Ethernet(gateway_mac));
        settings.random_seed = std::process::id().into();
        let mut interface = Interface::new(settings, &mut device, Instant::ZERO);
        let gateway: Ipv4Address = config.gateway_address;
        interface.update_ip_addrs(|addresses| {
            // Room for one address is there: the capacity is a constant of the crate, and the list is empty.
            let _ = addresses.push(IpCidr::new(gateway.into(), config.prefix_len));
        });
        // Every address is ours towards the guest: connections to anywhere end here.
        interface.set_any_ip(true);
        let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        let addressing =
            Addressing { gateway_mac, guest_mac: EthernetAddress(config.guest_mac.0), guest: config.guest_address };
        let policy = Policy::new(config);
        let resolvers = if config.resolvers.is_empty() { dns::host_resolvers() } else { config.resolvers.clone() };
        let wake = Arc::new(Notify::new());
        let (events_in, events) = mpsc::channel(crate::MAX_FLOWS);
        let tcp = Tcp::new(policy.clone(), resolvers.clone(), events_in, Arc::clone(&wake));
        let udp = Udp::new(addressing, config.gateway_address, policy, resolvers, to_guest.clone());
        Self {
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            tcp,
            udp,
            inbound,
            to_guest,
            events,
            wake,
            addressing,
            guest: config.guest_address,
            start: std::time::Instant::now(),
        }
    }

    async fn run(mut self) {
        let wake = Arc::clone(&self.wake);
        loop {
            let now = self.now();
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(Duration::from_secs(60), |delay| Duration::from_micros(delay.total_micros()));
            tokio::select! {
                frame = self.inbound.recv() => {
                    let Some(frame) = frame else { return };
                    self.take(frame);
                    for _ in 1..BATCH {
                        let Ok(frame) = self.inbound.try_recv() else { break };
                        self.take(frame);
                    }
                }
                Some(event) = self.events.recv() => self.heed(event),
                () = wake.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
            while let Ok(event) = self.events.try_recv() {
                self.heed(event);
            }
            self.settle();
            while let Some(frame) = self.device.outbound.pop_front() {
                if self.to_guest.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Polls the stack and moves data until nothing moves any more.
    fn settle(&mut self) {
        loop {
            self.poll();
            if !self.tcp.pump(&mut self.sockets) {
                break;
            }
        }
        self.poll();
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }

    fn take(&mut self, frame: Vec<u8>) {
        match sort(&frame, self.guest, self.udp.gateway()) {
            Sorted::Stack => self.device.inbound.push_back(frame),
            Sorted::Segment => {
                let (data, fin) = fin_apart(frame);
                self.device.inbound.push_back(data);
                self.device.inbound.extend(fin);
            }
            Sorted::Syn { ends, sequence } => match self.tcp.syn(ends, sequence, &frame, &mut self.sockets) {
                Syn::Held => {}
                Syn::ToStack => self.device.inbound.push_back(frame),
                Syn::Refuse(sequence) => self.refuse(ends, sequence),
            },
            Sorted::Reset { ends, sequence } => {
                if !self.tcp.reset(ends, sequence) {
                    self.device.inbound.push_back(frame);
                }
            }
            Sorted::Datagram { ends, payload } => {
                self.udp.send(ends, payload);
            }
            Sorted::Dropped => {}
        }
    }

    fn heed(&mut self, event: Event) {
        match event {
            Event::Connected(attempt) => {
                if let Some(syn) = self.tcp.connected(attempt, &mut self.sockets) {
                    // Polled at once: a listening socket takes the next SYN to its port, whoever sends it.
                    self.device.inbound.push_back(syn);
                    self.poll();
                }
            }
            Event::Refused(attempt) => {
                if let Some(sequence) = self.tcp.refused(attempt) {
                    self.refuse(attempt.ends, sequence);
                }
            }
        }
    }

    fn refuse(&mut self, ends: packet::Ends, sequence: u32) {
        debug!(address = %ends.address, port = ends.port, "connection refused");
        self.device.outbound.push_back(self.addressing.refusal(ends, sequence));
    }
}

/// The stack's network card: two queues.
#[derive(Default)]
struct Queues {
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.inbound.pop_front()?;
        Some((Received(frame), Sending(&mut self.outbound)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        // A full queue holds the stack back; the loop empties it before it goes on.
        (self.outbound.len() < QUEUE_FRAMES).then_some(Sending(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU + 14;
        capabilities
    }
}
