//! However a connection ends, both sides learn how.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;

use relay::HostTarget;
use smoltcp::socket::tcp;

use support::{GATEWAY, Guest, OPEN, guest_to, noise, server};

/// Sends until the connection is no more.
fn send_until_reset(guest: &mut Guest, handle: smoltcp::iface::SocketHandle) {
    let data = noise(64 * 1024);
    guest.until("a reset", |sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() {
            socket.send_slice(&data).expect("sent");
        }
        (socket.state() == tcp::State::Closed).then_some(())
    });
}

#[test]
fn an_upload_to_a_host_that_went_away_after_its_answer_is_reset() {
    let (port, serving) = server(|mut stream| {
        stream.write_all(b"too large").expect("written");
        stream.shutdown(Shutdown::Write).expect("half-closed");
        // The guest has seen the end when it sends; what comes after this is answered with a reset.
        stream.read_exact(&mut [0; 4]).expect("read");
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    assert_eq!(guest.receive_all(handle), b"too large");
    guest.send(handle, b"more");
    serving.join().expect("served");
    send_until_reset(&mut guest, handle);
}
