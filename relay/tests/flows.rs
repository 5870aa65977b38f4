//! Data and datagrams cross the relay whole.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use relay::HostTarget;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::IpAddress;

use support::{GATEWAY, OPEN, guest_to, noise, server};

#[test]
fn an_echo_comes_back_whole_after_the_guest_has_finished_sending() {
    let (port, serving) = server(|mut stream| {
        let mut data = Vec::new();
        // Half-close: all of it has come, and our direction is still open.
        stream.read_to_end(&mut data).expect("read");
        stream.write_all(&data).expect("written");
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    let data = noise(8 << 20);
    guest.send(handle, &data);
    guest.finish(handle);
    assert!(guest.receive_all(handle) == data, "the echo differs");
    serving.join().expect("served");
}

#[test]
fn a_slow_host_and_a_slow_guest_lose_nothing() {
    let data = noise(4 << 20);
    let (sent, wanted) = (data.clone(), data.clone());
    let (port, serving) = server(move |mut stream| {
        stream.write_all(&sent).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
        let mut all = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            thread::sleep(Duration::from_millis(1));
            match stream.read(&mut buffer).expect("read") {
                0 => break,
                length => all.extend_from_slice(&buffer[..length]),
            }
        }
        assert!(all == wanted, "what the guest sent differs");
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    // The guest sends everything before it reads anything.
    guest.send(handle, &data);
    guest.finish(handle);
    assert!(guest.receive_all(handle) == data, "what the host sent differs");
    serving.join().expect("served");
}

#[test]
fn what_is_closed_is_refused_and_not_accepted_first() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let mut guest = guest_to(HostTarget::Loopback(closed), None);
    assert!(guest.connected(GATEWAY, OPEN).is_none(), "nobody listens on the host");
    assert!(guest.connected(GATEWAY, OPEN + 1).is_none(), "not an open port");
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(10, 0, 0, 1)] {
        // A stack of its own would not send to loopback at all; the others reach the relay.
        if !address.is_loopback() {
            assert!(guest.connected(address, 80).is_none(), "{address}");
        }
    }
}

#[test]
fn a_reset_of_the_hosts_peer_reaches_the_guest() {
    let (port, serving) = server(|stream| {
        // Unread data at close is a reset.
        thread::sleep(Duration::from_millis(200));
        drop(stream);
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    guest.send(handle, b"never read");
    guest.until("a reset", |sockets| {
        (sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
    });
    serving.join().expect("served");
}

#[test]
fn a_hundred_connections_at_once_each_get_their_own_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut data = Vec::new();
                let _ = stream.read_to_end(&mut data);
                let _ = stream.write_all(&data);
            });
        }
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handles: Vec<SocketHandle> = (0..100).map(|_| guest.connect(GATEWAY, OPEN)).collect();
    for (number, handle) in handles.iter().enumerate() {
        guest.send(*handle, format!("number {number}").as_bytes());
        guest.finish(*handle);
    }
    for (number, handle) in handles.iter().enumerate() {
        assert_eq!(guest.receive_all(*handle), format!("number {number}").as_bytes());
    }
}

#[test]
fn the_engine_hears_who_calls_before_the_guest_does() {
    let folder = std::env::temp_dir().join(format!("relay-{}", std::process::id()));
    let _ = std::fs::remove_file(&folder);
    let listener = std::os::unix::net::UnixListener::bind(&folder).expect("a socket");
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("read");
        all
    });
    let target = HostTarget::Unix { path: folder.clone(), preface: "{\"worker\":\"w\"}\n".into() };
    let mut guest = guest_to(target, None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    guest.send(handle, b"GET /");
    guest.finish(handle);
    assert!(guest.receive_all(handle).is_empty(), "the host said nothing");
    assert_eq!(serving.join().expect("served"), "{\"worker\":\"w\"}\nGET /");
    std::fs::remove_file(folder).expect("removed");
}

#[test]
fn datagrams_reach_the_gateways_port_and_the_resolver() {
    let echo = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = echo.local_addr().expect("an address");
    thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    // The resolver is the same echo: its answer has the query's id.
    let mut guest = guest_to(HostTarget::Loopback(address.port()), Some(address));
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 64 * 1024]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).bind(5000).expect("bound");
    for (port, length) in [(OPEN, 1), (OPEN, 7), (OPEN, 1472), (53, 12), (53, 500)] {
        let data = noise(length);
        guest.until("room to send", |sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.send_slice(&data, (IpAddress::from(GATEWAY), port)).ok()
        });
        let back = guest.until("the echo", |sockets| {
            sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok().map(|(data, _)| data.to_vec())
        });
        assert!(back == data, "{length} bytes to port {port}");
    }
}
