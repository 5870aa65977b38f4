//! However a connection ends, both sides learn how.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use relay::HostTarget;
use smoltcp::socket::tcp;

use support::{GATEWAY, Guest, OPEN, PATIENCE, guest_to, noise, server};

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

/// A target to which a connection is not made until the listener reads: the preface does not fit its buffer.
fn slow_target(name: &str) -> (HostTarget, UnixListener, usize) {
    let path = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("non-blocking");
    let preface = "p".repeat(4 << 20);
    let length = preface.len();
    (HostTarget::Unix { path, preface }, listener, length)
}

/// The guest connects until the relay's connection is there.
fn accept(guest: &mut Guest, listener: &UnixListener) -> UnixStream {
    let (stream, _) = guest.until("a connection", |_| listener.accept().ok());
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    stream
}

#[test]
fn a_connection_that_the_guest_gave_up_takes_nothing_from_the_next() {
    let (target, listener, preface) = slow_target("given-up");
    let mut guest = guest_to(target, None);
    let first = guest.connect(GATEWAY, OPEN);
    let mut abandoned = accept(&mut guest, &listener);
    // As a kernel does it: without a word. The answer to the SYN will find nobody.
    guest.sockets.remove(first);
    let reading = thread::spawn(move || {
        abandoned.read_exact(&mut vec![0; preface]).expect("the preface");
        let mut rest = Vec::new();
        // The relay hears of it, and lets go.
        abandoned.read_to_end(&mut rest).expect("the end");
        rest
    });
    guest.until("the end of the connection given up", |_| reading.is_finished().then_some(()));
    assert!(reading.join().expect("read").is_empty());

    let second = guest.connect(GATEWAY, OPEN);
    let mut stream = accept(&mut guest, &listener);
    let reading = thread::spawn(move || {
        stream.read_exact(&mut vec![0; preface]).expect("the preface");
        let mut said = [0; 5];
        stream.read_exact(&mut said).expect("read");
        said
    });
    guest.send(second, b"hello");
    guest.until("the data to arrive", |_| reading.is_finished().then_some(()));
    assert_eq!(&reading.join().expect("read"), b"hello");
}

#[test]
fn a_guest_that_takes_its_request_back_ends_the_hosts_attempt() {
    let (target, listener, preface) = slow_target("taken-back");
    let mut guest = guest_to(target, None);
    let handle = guest.connect(GATEWAY, OPEN);
    let mut stream = accept(&mut guest, &listener);
    guest.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
    guest.poll();
    // The relay has one thread: when the second SYN has led here, the reset before it was heeded.
    guest.connect(GATEWAY, OPEN);
    let _second = accept(&mut guest, &listener);
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("the end");
    assert!(said.len() < preface, "all of the preface came");
}
