//! However a connection ends, both sides learn how.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use relay::{HostTarget, MAX_FLOWS};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use support::{GATEWAY, Guest, OPEN, PATIENCE, guest_to, noise, server};

/// Sends until the connection is no more.
fn send_until_reset(guest: &mut Guest, handle: SocketHandle) {
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

fn until_state(guest: &mut Guest, handle: SocketHandle, state: tcp::State) {
    let what = format!("the state {state}");
    guest.until(&what, |sockets| (sockets.get::<tcp::Socket<'_>>(handle).state() == state).then_some(()));
}

/// A Unix socket of the host, removed with this.
struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Listening {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("non-blocking");
        Self { listener, path }
    }

    fn target(&self, preface: String) -> HostTarget {
        HostTarget::Unix { path: self.path.clone(), preface }
    }

    /// A relay's connection; the guest goes on meanwhile.
    fn accept(&self, guest: &mut Guest) -> UnixStream {
        let (stream, _) = guest.until("a connection", |_| self.listener.accept().ok());
        stream.set_nonblocking(false).expect("blocking");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        stream
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A preface that does not fit a socket's buffer: a connection is not made before the listener reads.
const LONG: usize = 512 * 1024;

fn slow_target(name: &str) -> (Listening, Guest) {
    let listening = Listening::new(name);
    let guest = guest_to(listening.target("p".repeat(LONG)), None);
    (listening, guest)
}

#[test]
fn a_connection_that_the_guest_gave_up_takes_nothing_from_the_next() {
    let (listening, mut guest) = slow_target("given-up");
    let first = guest.connect(GATEWAY, OPEN);
    let mut abandoned = listening.accept(&mut guest);
    // As a kernel does it: without a word. The answer to the SYN will find nobody.
    guest.sockets.remove(first);
    let reading = thread::spawn(move || {
        abandoned.read_exact(&mut vec![0; LONG]).expect("the preface");
        let mut rest = Vec::new();
        // The relay hears of it, and lets go.
        abandoned.read_to_end(&mut rest).expect("the end");
        rest
    });
    guest.until("the end of the connection given up", |_| reading.is_finished().then_some(()));
    assert!(reading.join().expect("read").is_empty());

    let second = guest.connect(GATEWAY, OPEN);
    let mut stream = listening.accept(&mut guest);
    let reading = thread::spawn(move || {
        stream.read_exact(&mut vec![0; LONG]).expect("the preface");
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
    let (listening, mut guest) = slow_target("taken-back");
    let handle = guest.connect(GATEWAY, OPEN);
    let mut stream = listening.accept(&mut guest);
    guest.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
    guest.poll();
    // The relay has one thread: when the second SYN has led here, the reset before it was heeded.
    guest.connect(GATEWAY, OPEN);
    let _second = listening.accept(&mut guest);
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("the end");
    assert!(said.len() < LONG, "all of the preface came");
}

#[test]
fn connections_being_made_are_counted_and_one_too_many_is_refused() {
    let (listening, mut guest) = slow_target("many");
    let handles: Vec<_> = (0..MAX_FLOWS).map(|_| guest.connect(GATEWAY, OPEN)).collect();
    let mut streams: Vec<_> = (0..MAX_FLOWS).map(|_| listening.accept(&mut guest)).collect();
    assert!(guest.connected(GATEWAY, OPEN).is_none(), "more than the limit");
    // Once one of them is made, it makes room: it is idle.
    let first = thread::spawn(move || {
        streams[0].read_exact(&mut vec![0; LONG]).expect("the preface");
        streams
    });
    guest.until("a connection", |sockets| {
        handles.iter().any(|handle| sockets.get::<tcp::Socket<'_>>(*handle).may_send()).then_some(())
    });
    let _streams = first.join().expect("read");
    guest.connect(GATEWAY, OPEN);
    listening.accept(&mut guest);
}

#[test]
fn ended_connections_whose_host_does_not_read_are_counted() {
    let listening = Listening::new("unread");
    let mut guest = guest_to(listening.target(String::new()), None);
    // More than the socket's buffer, less than what waits in the relay besides.
    let data = noise(400 * 1024);
    let mut streams = Vec::new();
    for _ in 0..=MAX_FLOWS {
        let handle = guest.connect(GATEWAY, OPEN);
        let stream = listening.accept(&mut guest);
        stream.shutdown(Shutdown::Write).expect("half-closed");
        streams.push(stream);
        until_state(&mut guest, handle, tcp::State::CloseWait);
        guest.send(handle, &data);
        guest.finish(handle);
        until_state(&mut guest, handle, tcp::State::Closed);
        guest.sockets.remove(handle);
    }
    let mut read = |number: usize| {
        let mut all = Vec::new();
        streams[number].read_to_end(&mut all).expect("the end");
        all
    };
    assert!(read(0).len() < data.len(), "the first was to make room for the last");
    assert!(read(1) == data, "the second differs");
    assert!(read(MAX_FLOWS) == data, "the last differs");
}

#[test]
fn an_upload_that_the_guest_breaks_off_does_not_look_complete() {
    for host_ends_first in [false, true] {
        let (port, serving) = server(move |mut stream| {
            if host_ends_first {
                stream.shutdown(Shutdown::Write).expect("half-closed");
            }
            let error = stream.read_to_end(&mut Vec::new()).expect_err("no end of data");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        });
        let mut guest = guest_to(HostTarget::Loopback(port), None);
        let handle = guest.connected(GATEWAY, OPEN).expect("connected");
        if host_ends_first {
            until_state(&mut guest, handle, tcp::State::CloseWait);
        }
        guest.send(handle, b"the first half");
        guest.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        guest.until("the server's end", |_| serving.is_finished().then_some(()));
        serving.join().expect("served");
    }
}

#[test]
fn a_relay_that_ends_does_not_complete_its_uploads() {
    let (port, serving) = server(|mut stream| {
        let error = stream.read_to_end(&mut Vec::new()).expect_err("no end of data");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let handle = guest.connected(GATEWAY, OPEN).expect("connected");
    guest.send(handle, b"the first half");
    drop(guest);
    serving.join().expect("served");
}

#[test]
fn a_host_that_ended_first_and_reads_late_gets_the_whole_upload() {
    let listening = Listening::new("late");
    let mut guest = guest_to(listening.target(String::new()), None);
    let handle = guest.connect(GATEWAY, OPEN);
    let mut stream = listening.accept(&mut guest);
    stream.shutdown(Shutdown::Write).expect("half-closed");
    until_state(&mut guest, handle, tcp::State::CloseWait);
    // More than the socket's buffer and the relay's queue of pieces: the last of it waits in the stack.
    let data = noise(400 * 1024);
    for piece in data.chunks(8 * 1024) {
        guest.send(handle, piece);
        guest.until("the piece to be taken", |sockets| {
            (sockets.get::<tcp::Socket<'_>>(handle).send_queue() == 0).then_some(())
        });
    }
    guest.finish(handle);
    until_state(&mut guest, handle, tcp::State::Closed);
    // The stack remembers a connection for ten seconds after its end, and then no more.
    let ended = Instant::now();
    guest.until("the end of that time", |_| (ended.elapsed() > Duration::from_secs(11)).then_some(()));
    let reading = thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
        loop {
            match stream.read(&mut buffer).expect("read") {
                0 => return all,
                length => all.extend_from_slice(&buffer[..length]),
            }
        }
    });
    guest.until("the upload", |_| reading.is_finished().then_some(()));
    assert!(reading.join().expect("read") == data, "what the guest sent differs");
}

#[test]
fn the_longest_idle_connection_is_reset_on_both_sides_for_one_more() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let port = listener.local_addr().expect("an address").port();
    let mut guest = guest_to(HostTarget::Loopback(port), None);
    let mut ends = Vec::new();
    for _ in 0..MAX_FLOWS {
        let handle = guest.connected(GATEWAY, OPEN).expect("connected");
        ends.push((handle, guest.until("a connection", |_| listener.accept().ok()).0));
    }
    // The first is used again: the second is idle longest.
    guest.send(ends[0].0, b"still here");
    ends[0].1.set_nonblocking(false).expect("blocking");
    ends[0].1.read_exact(&mut [0; 10]).expect("read");
    guest.connected(GATEWAY, OPEN).expect("connected");
    until_state(&mut guest, ends[1].0, tcp::State::Closed);
    ends[1].1.set_nonblocking(false).expect("blocking");
    let error = ends[1].1.read(&mut [0; 1]).expect_err("no end of data");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let states = ends.iter().map(|(handle, _)| guest.sockets.get::<tcp::Socket<'_>>(*handle).state());
    assert_eq!(states.filter(|state| *state == tcp::State::Established).count(), MAX_FLOWS - 1);
}
