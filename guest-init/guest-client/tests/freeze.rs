//! Guests that stand still, and guests that wake up as somebody else: the real services in this process, and a host that
//! is either the client or these tests' own hand.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_client::{Exec, Guest, GuestError, Output};
use guest_init::{Platform, Services, serve};
use guest_protocol::{
    Disk, ErrorCode, ExecRequest, Header, INITIAL_CREDIT, Identity, Kind, Origin, Renewal, Reply, Request, StreamId,
};

/// For whatever must happen at all; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host's end of a guest's channel.
fn channel() -> UnixStream {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    std::thread::spawn(move || serve(File::from(OwnedFd::from(guest)), Services::new(Platform::Process)));
    host.set_read_timeout(Some(PATIENCE)).expect("a socket");
    host
}

fn shell(script: &str, folder: &Path) -> ExecRequest {
    ExecRequest {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        workdir: Some(folder.display().to_string()),
        ..ExecRequest::default()
    }
}

fn identity() -> Identity {
    Identity {
        entropy: vec![1; 32],
        unix_time_ns: 0,
        hostname: "parent".into(),
        machine_id: "0".repeat(32),
        network: None,
        root: Disk { device: "/dev/null".into(), filesystem: "erofs".into() },
        scratch: None,
        scratch_is_kept: false,
        ca_bundle_pem: None,
        env: std::env::vars().filter(|(name, _)| name == "PATH").collect(),
        workdir: "/".into(),
        user: String::new(),
        memory_limit_bytes: None,
        open_files: 0,
    }
}

fn renewal() -> Renewal {
    Renewal {
        entropy: vec![2; 32],
        unix_time_ns: 0,
        hostname: "child".into(),
        machine_id: "1".repeat(32),
        network: None,
        origin: Origin { id: "child".into(), parent: "parent".into(), forked_at_unix_ns: 0 },
    }
}

fn send(host: &mut UnixStream, stream: u32, kind: Kind, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("a small body");
    let header = Header { length, stream: StreamId(stream), kind, last: false };
    host.write_all(&[&header.to_bytes()[..], body].concat()).expect("sent");
}

fn ask(host: &mut UnixStream, stream: u32, request: &Request) {
    send(host, stream, Kind::Request, &serde_json::to_vec(request).expect("a request"));
}

fn hear(host: &mut UnixStream) -> (Header, Vec<u8>) {
    let mut raw = [0; Header::BYTES];
    host.read_exact(&mut raw).expect("a header");
    let header = Header::parse(&raw).expect("a valid header");
    let mut body = vec![0; header.length as usize];
    host.read_exact(&mut body).expect("a body");
    (header, body)
}

/// Waits for a frame of this kind; returns what came before it on stream 1 as output.
fn hear_until(host: &mut UnixStream, kind: Kind) -> Vec<u8> {
    let mut output = Vec::new();
    loop {
        let (header, body) = hear(host);
        if header.kind == kind {
            return output;
        }
        if (header.stream, header.kind) == (StreamId(1), Kind::Output) {
            output.extend_from_slice(&body);
        }
    }
}

/// A host by hand with an adopted guest, which has said Hello.
fn adopted() -> UnixStream {
    let mut host = channel();
    assert_eq!(hear(&mut host).0.kind, Kind::Hello);
    ask(&mut host, 9, &Request::Adopt(Box::new(identity())));
    let (header, body) = hear(&mut host);
    assert!(matches!(serde_json::from_slice(&body), Ok(Reply::Adopted { .. })), "{header:?}");
    host
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn counted(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    for (line, number) in text.lines().zip(1..) {
        assert_eq!(line, number.to_string());
    }
}

async fn next_line(exec: &mut Exec) -> Vec<u8> {
    match exec.next().await.expect("an event") {
        Output::Stdout(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_program_that_prints_through_many_freezes_loses_and_repeats_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let guest = Guest::connect(channel()).expect("connected");
    let script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo $i; done; cat";
    let mut exec = guest.exec(ExecRequest { stdin: true, ..shell(script, folder.path()) }).await.expect("started");
    let input = exec.input();
    let freezing = async {
        for _ in 0..30 {
            guest.freeze(PATIENCE).await.expect("frozen").thaw();
            guest.set_clock(0).await.expect("set");
            drop(guest.freeze(PATIENCE).await.expect("frozen"));
        }
        let frozen = guest.freeze(PATIENCE).await.expect("frozen");
        let writing = tokio::spawn(async move {
            input.write(b"60001\n").await.expect("written");
            input.close().await.expect("closed");
        });
        tokio::task::yield_now().await;
        frozen.thaw();
        writing.await.expect("written");
    };
    let reading = async {
        let mut text = Vec::new();
        loop {
            match exec.next().await.expect("an event") {
                Output::Stdout(bytes) => text.extend_from_slice(&bytes),
                Output::Stderr(bytes) => panic!("{bytes:?}"),
                Output::Exited { code, .. } => return (text, code),
            }
        }
    };
    let ((), (text, code)) = tokio::join!(freezing, reading);
    counted(&text);
    assert_eq!((text.iter().filter(|byte| **byte == b'\n').count(), code), (60001, 0));
}

#[tokio::test]
async fn nothing_is_said_between_frozen_and_thaw() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut host = adopted();
    let script =
        "i=0; while [ $i -lt 1000000 ] && [ ! -e stop ]; do i=$((i+1)); echo $i; echo >> count; sleep 0.005; done";
    ask(&mut host, 1, &Request::Exec(Box::new(shell(script, folder.path()))));
    let mut text = hear_until(&mut host, Kind::Reply);
    for _ in 0..3 {
        text.extend(hear_until_line(&mut host));
        send(&mut host, 0, Kind::Freeze, &[]);
        text.extend(hear_until(&mut host, Kind::Frozen));
        // Neither a second question nor a frame that makes no sense now is answered.
        send(&mut host, 0, Kind::Freeze, &[]);
        send(&mut host, 1, Kind::Credit, &[1, 0, 0, 0]);
        let before = lines(&folder.path().join("count"));
        until("the program runs on", || lines(&folder.path().join("count")) > before + 20).await;
        host.set_nonblocking(true).expect("a socket");
        let silence = host.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(silence, Err(std::io::ErrorKind::WouldBlock));
        host.set_nonblocking(false).expect("a socket");
        send(&mut host, 0, Kind::Thaw, &[]);
        // To a guest that is awake, it means nothing.
        send(&mut host, 0, Kind::Thaw, &[]);
    }
    std::fs::write(folder.path().join("stop"), "").expect("a file");
    text.extend(hear_until(&mut host, Kind::Reply));
    counted(&text);
    let said = String::from_utf8_lossy(&text).lines().count();
    assert_eq!(said, lines(&folder.path().join("count")));
}

fn hear_until_line(host: &mut UnixStream) -> Vec<u8> {
    loop {
        let (header, body) = hear(host);
        if header.kind == Kind::Output {
            return body;
        }
    }
}

#[tokio::test]
async fn a_child_answers_only_its_own_host_while_the_parents_programs_run_on() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let mut host = adopted();
    // As much as its host gives room for, and then far more.
    let flood = "echo $$ > printer; head -c 20000000 /dev/zero; touch printed; exec sleep 1000";
    ask(&mut host, 1, &Request::Exec(Box::new(shell(flood, folder.path()))));
    let reader = ExecRequest { stdin: true, ..shell("echo $$ > reader; exec cat > heard", folder.path()) };
    ask(&mut host, 2, &Request::Exec(Box::new(reader)));
    send(&mut host, 2, Kind::Input, b"before");
    let counter = "while [ ! -e stop ]; do echo; echo >> count; sleep 0.005; done; touch stopped";
    ask(&mut host, 3, &Request::Exec(Box::new(shell(counter, folder.path()))));
    let upload = Request::Write { path: path("upload").display().to_string(), mode: 0o644, parents: false };
    ask(&mut host, 4, &upload);
    send(&mut host, 4, Kind::Input, b"half");
    let temporary = || {
        let mut names = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().contains(".iii-tmp-"))
    };
    let mut flooded = 0;
    while flooded < INITIAL_CREDIT as usize {
        let (header, body) = hear(&mut host);
        if (header.stream, header.kind) == (StreamId(1), Kind::Output) {
            flooded += body.len();
        }
    }
    until("everything has begun", || lines(&path("count")) > 0 && temporary()).await;
    until("the input has arrived", || std::fs::read(path("heard")).is_ok_and(|heard| heard == b"before")).await;
    assert!(!path("printed").exists());
    send(&mut host, 0, Kind::Freeze, &[]);
    hear_until(&mut host, Kind::Frozen);

    // The same socket, but a host that knows nothing of the streams above: any frame of theirs would break what follows.
    let child = Guest::connect(host).expect("connected");
    let renewed = child.renew(renewal()).await.expect("renewed");
    assert!(!renewed.kernel.is_empty() && !renewed.boot_id.is_empty());
    for number in 0..20 {
        let said = format!("{number}\n");
        let mut exec = child.exec(shell(&format!("echo {number}"), folder.path())).await.expect("started");
        assert_eq!(next_line(&mut exec).await, said.as_bytes());
        assert_eq!(exec.next().await.expect("an event"), Output::Exited { code: 0, timed_out: false });
    }
    until("the flood flows", || path("printed").exists()).await;
    let before = lines(&path("count"));
    until("the counter counts", || lines(&path("count")) > before + 50).await;
    // Its input has neither ended nor changed: it waits for more.
    let pid = std::fs::read_to_string(path("reader")).expect("a number");
    assert!(Path::new("/proc").join(pid.trim()).join("fd/0").exists());
    assert_eq!(std::fs::read(path("heard")).expect("what was sent"), b"before");
    until("the temporary file is gone", || !temporary()).await;
    assert!(!path("upload").exists());
    // The end of an old program ends nothing of the new host's: the counter was stream 3, as one of these is.
    let mut again = child.exec(ExecRequest { stdin: true, ..shell("cat", folder.path()) }).await.expect("started");
    std::fs::write(path("stop"), "").expect("a file");
    until("the counter stops", || path("stopped").exists()).await;
    again.input().write(b"still here").await.expect("written");
    assert_eq!(next_line(&mut again).await, b"still here");

    // A child can be frozen like any guest. When its channel ends, so does whatever it had inherited.
    child.freeze(PATIENCE).await.expect("frozen").thaw();
    child.ping().await.expect("an answer");
    drop((again, child));
    until("the reader is ended", || !Path::new("/proc").join(pid.trim()).exists()).await;
}

#[tokio::test]
async fn a_guest_that_was_never_adopted_is_not_renewed() {
    let guest = Guest::connect(channel()).expect("connected");
    let refused = guest.renew(renewal()).await;
    assert!(matches!(refused, Err(GuestError::Failed(failure)) if failure.code == ErrorCode::Invalid));
    guest.adopt(identity()).await.expect("adopted");
    guest.renew(renewal()).await.expect("renewed");
    guest.ping().await.expect("an answer");
}

#[tokio::test]
async fn requests_wait_while_the_guest_is_frozen_and_so_does_a_second_freeze() {
    let guest = Guest::connect(channel()).expect("connected");
    let frozen = guest.freeze(PATIENCE).await.expect("frozen");
    let asking = guest.clone();
    let mut asked = tokio::spawn(async move { asking.ping().await });
    let waiting = tokio::time::timeout(Duration::from_millis(100), &mut asked).await;
    assert!(waiting.is_err(), "{waiting:?}");
    let second = guest.freeze(Duration::from_millis(20)).await;
    assert!(matches!(second, Err(GuestError::NotFrozen(_))));
    let patient = guest.clone();
    let third = tokio::spawn(async move { patient.freeze(PATIENCE).await.map(drop) });
    drop(frozen);
    asked.await.expect("no panic").expect("an answer");
    third.await.expect("no panic").expect("frozen, in its turn");
    guest.ping().await.expect("an answer");
}

#[tokio::test]
async fn a_guest_that_does_not_come_to_rest_is_told_to_go_on_and_its_late_answer_is_not_taken_for_another() {
    let (host, mut guest) = UnixStream::pair().expect("a socket pair");
    let client = Guest::connect(host).expect("connected");
    // Nobody has asked.
    send(&mut guest, 0, Kind::Frozen, &[]);
    send(&mut guest, 0, Kind::Hello, br#"{"version":0,"kernel":""}"#);
    client.ready().await.expect("hello");
    let impatient = client.freeze(Duration::from_millis(50)).await;
    assert!(matches!(impatient, Err(GuestError::NotFrozen(_))));
    let mut guest = tokio::task::spawn_blocking(move || {
        assert_eq!((hear(&mut guest).0.kind, hear(&mut guest).0.kind), (Kind::Freeze, Kind::Thaw));
        guest
    })
    .await
    .expect("heard");
    let asking = client.clone();
    let mut second = tokio::spawn(async move { asking.freeze(PATIENCE).await });
    let mut guest = tokio::task::spawn_blocking(move || {
        assert_eq!(hear(&mut guest).0.kind, Kind::Freeze);
        send(&mut guest, 0, Kind::Frozen, &[]);
        guest
    })
    .await
    .expect("heard");
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut second).await.is_err());
    send(&mut guest, 0, Kind::Frozen, &[]);
    let frozen = second.await.expect("no panic").expect("frozen");
    // One that speaks out of turn is heard as ever, and what only a host says ends the connection.
    send(&mut guest, 7, Kind::Output, b"nobody asked");
    send(&mut guest, 0, Kind::Freeze, &[]);
    client.closed().await;
    drop(frozen);
    assert!(matches!(client.ping().await, Err(GuestError::Broken(_))));
}

#[tokio::test]
async fn a_channel_that_ends_ends_the_wait_for_a_rest() {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    let client = Guest::connect(host).expect("connected");
    let asking = client.clone();
    let asked = tokio::spawn(async move { asking.freeze(PATIENCE).await.map(drop) });
    tokio::task::yield_now().await;
    drop(guest);
    assert!(matches!(asked.await.expect("no panic"), Err(GuestError::Closed)));
}
