//! The client against the guest's real services, in this process: no VM, the same frames.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_client::{Exec, Guest, GuestError, Output, SupervisedEvent};
use guest_init::{Platform, Services, serve};
use guest_protocol::{Control, ErrorCode, ExecRequest, SuperviseRequest, TerminalSize};

const MIB: usize = 1024 * 1024;

fn guest() -> Guest {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    std::thread::spawn(move || serve(std::fs::File::from(OwnedFd::from(guest)), Services::new(Platform::Process)));
    Guest::connect(host).expect("connected")
}

fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

async fn all(exec: &mut Exec) -> (Vec<u8>, Vec<u8>, i32, bool) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match exec.next().await.expect("an event") {
            Output::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Output::Exited { code, timed_out } => return (stdout, stderr, code, timed_out),
        }
    }
}

#[tokio::test]
async fn exit_statuses_are_those_of_a_shell() {
    let guest = guest();
    guest.ready().await.expect("hello");
    let statuses = [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -9 $$"], 137),
    ];
    // Often: a program that cannot be started is a child that ends at once, and only one of two waiters may collect it.
    for (argv, status) in statuses.into_iter().cycle().take(500) {
        let mut exec = guest.exec(command(argv)).await.expect("started");
        let (_, stderr, code, _) = all(&mut exec).await;
        assert_eq!(code, status, "{argv:?}: {}", String::from_utf8_lossy(&stderr));
    }
}

#[tokio::test]
async fn input_comes_back_whole() {
    let guest = guest();
    let mut exec = guest.exec(ExecRequest { stdin: true, ..command(&["cat"]) }).await.expect("started");
    let sent: Vec<u8> = (0..10 * MIB).map(|number| (number * 7 % 251) as u8).collect();
    let input = exec.input();
    let feeding = {
        let sent = sent.clone();
        tokio::spawn(async move {
            input.write(&sent).await.expect("written");
            input.close().await.expect("closed");
        })
    };
    let (stdout, _, code, _) = all(&mut exec).await;
    feeding.await.expect("fed");
    assert_eq!((stdout == sent, code), (true, 0));
}

#[tokio::test]
async fn a_slow_reader_stops_its_own_producer_and_nobody_else() {
    let guest = guest();
    let mut slow = guest.exec(command(&["head", "-c", "50000000", "/dev/zero"])).await.expect("started");
    for _ in 0..20 {
        let mut quick = guest.exec(command(&["echo", "here"])).await.expect("started");
        assert_eq!(all(&mut quick).await.0, b"here\n");
    }
    let (stdout, _, code, _) = all(&mut slow).await;
    assert_eq!((stdout.len(), code), (50_000_000, 0));
}

#[tokio::test]
async fn a_deadline_kills_and_says_so() {
    let guest = guest();
    let request = ExecRequest { timeout_ms: Some(200), ..command(&["sh", "-c", "echo early; sleep 60"]) };
    let mut exec = guest.exec(request).await.expect("started");
    let (stdout, _, code, timed_out) = all(&mut exec).await;
    assert_eq!((stdout.as_slice(), code, timed_out), (&b"early\n"[..], 137, true));
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_stream_open() {
    let guest = guest();
    let mut exec = guest.exec(command(&["sh", "-c", "sleep 300 & echo done"])).await.expect("started");
    let finished = tokio::time::timeout(Duration::from_secs(60), all(&mut exec)).await.expect("an end");
    assert_eq!((finished.0.as_slice(), finished.2), (&b"done\n"[..], 0));
}

#[tokio::test]
async fn nothing_is_lost_of_what_was_said_before_the_end_however_late_it_is_read() {
    let guest = guest();
    let mut exec = guest.exec(command(&["head", "-c", "307200", "/dev/zero"])).await.expect("started");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut length = 0;
    loop {
        match exec.next().await.expect("an event") {
            Output::Exited { code, .. } => break assert_eq!(code, 0),
            Output::Stdout(bytes) => length += bytes.len(),
            Output::Stderr(bytes) => panic!("{bytes:?}"),
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(length, 307_200);
}

#[tokio::test]
async fn a_background_child_that_goes_on_talking_does_not_hold_the_stream_open() {
    let guest = guest();
    let script = "(for i in $(seq 500); do echo more; sleep 0.02; done) & exit 5";
    let mut exec = guest.exec(command(&["sh", "-c", script])).await.expect("started");
    let (_, _, code, timed_out) =
        tokio::time::timeout(Duration::from_secs(9), all(&mut exec)).await.expect("an end before the child's");
    assert_eq!((code, timed_out), (5, false));
}

#[tokio::test]
async fn a_restart_is_heeded_while_a_dead_programs_child_still_talks() {
    let guest = guest();
    let script = "trap '' TERM; (for i in $(seq 500); do echo more; sleep 0.02; done) & exit 4";
    let request = SuperviseRequest { command: script.into(), grace_ms: 200, ..SuperviseRequest::default() };
    let mut program = guest.supervise(request).await.expect("supervised");
    let mut lives = 0;
    let twice = async {
        loop {
            match program.next().await.expect("an event") {
                SupervisedEvent::Started { .. } => lives += 1,
                // The first word of a life is the child's: its parent has ended, or does so now.
                SupervisedEvent::Stdout(_) if lives == 1 => {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    program.restart().await.expect("an order");
                }
                SupervisedEvent::Exited { code } if lives == 2 => return code,
                _ => {}
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), twice).await.expect("a second life"), 4);
}

#[tokio::test]
async fn a_large_folder_is_listed_whole() {
    let guest = guest();
    let folder = tempfile::TempDir::new().expect("a folder");
    for number in 0..12_000 {
        let name = format!("{number:05}-{}", "n".repeat(100));
        std::fs::write(folder.path().join(name), "").expect("a file");
    }
    let entries = guest.list(folder.path().to_str().expect("UTF-8")).await.expect("a listing");
    assert_eq!(entries.len(), 12_000);
    assert!(entries[11_999].name.starts_with("11999-"));
    guest.ping().await.expect("the connection lives");
}

#[tokio::test]
async fn a_terminal_has_the_size_it_was_given() {
    let guest = guest();
    let size = TerminalSize { rows: 33, cols: 101 };
    let request =
        ExecRequest { terminal: Some(size), stdin: true, ..command(&["sh", "-c", "stty size; read line; stty size"]) };
    let mut exec = guest.exec(request).await.expect("started");
    let input = exec.input();
    let Output::Stdout(first) = exec.next().await.expect("an event") else { panic!("no output") };
    assert!(String::from_utf8_lossy(&first).contains("33 101"), "{first:?}");
    input.control(Control::Resize(TerminalSize { rows: 20, cols: 40 })).await.expect("resized");
    input.write(b"\n").await.expect("written");
    let (rest, ..) = all(&mut exec).await;
    assert!(String::from_utf8_lossy(&rest).contains("20 40"), "{rest:?}");
}

#[tokio::test]
async fn a_terminal_whose_program_reads_nothing_is_still_obeyed() {
    let guest = guest();
    let size = TerminalSize { rows: 24, cols: 80 };
    let request = ExecRequest { terminal: Some(size), stdin: true, ..command(&["sleep", "600"]) };
    let mut exec = guest.exec(request).await.expect("started");
    let input = exec.input();
    // More than a terminal takes.
    input.write(&[b'x'; 64 * 1024]).await.expect("written");
    input.control(Control::Stop).await.expect("ordered");
    assert_eq!(all(&mut exec).await.2, 128 + 9);
}

#[tokio::test]
async fn a_program_inherits_no_descriptor_of_another_request() {
    let guest = guest();
    // What this process was started with goes on to programs, as in any test; of requests nothing does.
    let list = || command(&["sh", "-c", "ls -l /proc/self/fd | grep -c eventfd"]);
    let mut waits = guest.exec(ExecRequest { stdin: true, ..command(&["cat"]) }).await.expect("started");
    let (listed, ..) = all(&mut guest.exec(list()).await.expect("started")).await;
    assert_eq!(String::from_utf8_lossy(&listed), "0\n");
    waits.input().close().await.expect("closed");
    assert_eq!(all(&mut waits).await.2, 0);
}

#[tokio::test]
async fn two_hundred_short_processes_all_end_as_they_should() {
    let guest = guest();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..200 {
        let guest = guest.clone();
        running.spawn(async move {
            let mut exec =
                guest.exec(command(&["sh", "-c", &format!("exit {}", number % 100)])).await.expect("started");
            assert_eq!(all(&mut exec).await.2, number % 100);
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("a process");
    }
}

#[tokio::test]
async fn files_are_written_read_listed_moved_and_removed() {
    let guest = guest();
    let folder = std::env::temp_dir().join(format!("guest-files-{}", std::process::id()));
    let path = |name: &str| folder.join(name).display().to_string();
    let failed = |result: Result<u64, GuestError>| match result {
        Err(GuestError::Failed(failure)) => failure.code,
        other => panic!("{other:?}"),
    };
    let write = async |path: String, parents: bool| -> Result<u64, GuestError> {
        let mut writer = guest.write(&path, 0o640, parents).await?;
        writer.write(b"content").await?;
        writer.finish().await
    };
    assert_eq!(failed(write(path("a/b"), false).await), ErrorCode::ParentNotFound);
    assert_eq!(write(path("a/b"), true).await.expect("written"), 7);
    assert_eq!(failed(write(path("a"), false).await), ErrorCode::WrongType);
    assert_eq!(failed(write("relative".into(), false).await), ErrorCode::Invalid);
    let stat = guest.stat(&path("a/b")).await.expect("a record");
    assert_eq!((stat.size, stat.mode, stat.is_dir), (7, 0o640, false));
    let names: Vec<String> = guest.list(&path("a")).await.expect("a listing").into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["b"], "no temporary file is left");
    assert!(guest.make_dir(&path("c"), 0o755, false).await.expect("made"));
    assert!(!guest.make_dir(&path("c"), 0o755, true).await.expect("there"));
    guest.rename(&path("a/b"), &path("c/d"), false).await.expect("renamed");
    let mut reader = guest.read(&path("c/d")).await.expect("opened");
    assert_eq!(reader.next().await.expect("read").as_deref(), Some(&b"content"[..]));
    assert_eq!(reader.next().await.expect("read"), None);
    assert!(
        matches!(guest.remove(&path("c"), false).await, Err(GuestError::Failed(f)) if f.code == ErrorCode::NotEmpty)
    );
    guest.remove(&folder.display().to_string(), true).await.expect("removed");
    assert!(matches!(guest.read(&path("c/d")).await, Err(GuestError::Failed(f)) if f.code == ErrorCode::NotFound));
}

#[tokio::test]
async fn a_sync_replaces_what_is_there_and_refuses_to_leave_its_root() {
    let guest = guest();
    let base = std::env::temp_dir().join(format!("guest-sync-{}", std::process::id()));
    let root = base.join("root");
    std::fs::create_dir_all(root.join("node_modules/kept")).expect("folders");
    std::fs::write(root.join("stale.py"), "old").expect("a file");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    archive.append_data(&mut header, "src/new.py", &b"new"[..]).expect("an entry");
    let archive = archive.into_inner().expect("an archive");
    let root_text = root.display().to_string();
    let keep = vec!["node_modules".to_owned()];
    let synced = guest.sync(&root_text, Vec::new(), true, keep, archive.as_slice()).await.expect("synced");
    assert_eq!(synced, (1, 1));
    assert_eq!(std::fs::read_to_string(root.join("src/new.py")).expect("the new file"), "new");
    assert!(!root.join("stale.py").exists() && root.join("node_modules/kept").exists());
    let refused = guest.sync(&root_text, vec!["../out".to_owned()], false, Vec::new(), &b""[..]).await;
    assert!(matches!(refused, Err(GuestError::Failed(failure)) if failure.code == ErrorCode::Invalid));
    // Half an archive changes nothing.
    let half = guest.sync(&root_text, Vec::new(), true, Vec::new(), &archive[..600]).await;
    assert!(half.is_err() && root.join("src/new.py").exists());
    std::fs::remove_dir_all(base).expect("removed");
}

#[tokio::test]
async fn a_supervised_program_lives_again_after_a_restart() {
    let guest = guest();
    let request =
        SuperviseRequest { command: "echo up; sleep 60".into(), grace_ms: 2000, ..SuperviseRequest::default() };
    let mut program = guest.supervise(request).await.expect("supervised");
    let up = async |program: &mut guest_client::Supervised| {
        loop {
            match program.next().await.expect("an event") {
                SupervisedEvent::Stdout(text) => return assert_eq!(&text[..], b"up\n"),
                SupervisedEvent::Started { .. } | SupervisedEvent::Exited { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    up(&mut program).await;
    program.restart().await.expect("asked");
    up(&mut program).await;
    let again = guest.supervise(SuperviseRequest::default()).await.expect("asked").next().await;
    assert!(matches!(again, Err(GuestError::Failed(failure)) if failure.code == ErrorCode::Invalid));
    program.stop().await.expect("asked");
    while program.next().await.expect("an event") != SupervisedEvent::Ended {}
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_cut_off() {
    use std::io::Write;
    for garbage in [&[0xff; 64][..], &[0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0], &[0, 0, 32, 0, 1, 0, 0, 0, 5, 0, 0, 0]] {
        let (host, mut guest) = UnixStream::pair().expect("a socket pair");
        let client = Guest::connect(host).expect("connected");
        let asked = client.ping();
        guest.write_all(garbage).expect("written");
        drop(guest);
        assert!(asked.await.is_err());
        client.closed().await;
    }
}
