//! A guest's TCP through the relay, against the same script on the host's loopback.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const ROUNDS: usize = 3;
const MIB: usize = 64;
const PINGS: usize = 300;

/// Up, down, and ping-pong. Does not measure itself: the guest's clock is not the one to compare with the host's.
const SCRIPT: &str = "
import socket, sys
host, port, mib, pings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def dial(order):
    link = socket.create_connection((host, port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(order)
    return link
block = bytes(1 << 20)
link = dial(b'u')
for _ in range(mib):
    link.sendall(block)
link.shutdown(socket.SHUT_WR)
assert link.recv(1) == b'!'
link, count = dial(b'd'), 0
while data := link.recv(1 << 18):
    count += len(data)
assert count == mib << 20, count
link.close()
link = dial(b'p')
for _ in range(pings):
    link.sendall(b'x')
    assert link.recv(1) == b'x'
link.close()
";

/// Milliseconds, by the host's clock: up, down, and one ping-pong.
type Times = [f64; 3];

pub(crate) fn measure(report: &mut Report) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let arguments = |host: &str| [host.to_owned(), port.to_string(), MIB.to_string(), PINGS.to_string()];
    let (served, times) = mpsc::channel();
    thread::spawn(move || {
        // One script at a time dials three times, in order.
        while let Ok(times) = (0..3).map(|_| serve(&listener.accept()?.0)).collect::<io::Result<Vec<f64>>>() {
            if served.send([times[0], times[1], times[2] / PINGS as f64]).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut guest, mut host) = (Vec::<Times>::new(), Vec::<Times>::new());
    runtime.block_on(async {
        let folder = machine::folder();
        let root = machine::python_root(folder.path()).await;
        let kit = machine::kit();
        let recipe = Recipe { kit: &kit, root: Some(&root), folder: folder.path(), clone: true, port: Some(port) };
        let (machine, _) = machine::boot(&recipe).await;
        machine.adopt().await;
        for _ in 0..ROUNDS {
            machine.python(SCRIPT, &arguments("100.96.0.1")).await;
            guest.push(times.recv().expect("three connections"));
            let status = Command::new("python3").args(["-c", SCRIPT]).args(arguments("127.0.0.1")).status();
            assert!(status.is_ok_and(|status| status.success()), "python3 on the host");
            host.push(times.recv().expect("three connections"));
        }
    });
    let column = |rows: &[Times], column: usize| Samples::from_ms(rows.iter().map(|row| row[column]));
    for (number, name) in
        [format!("relay: {MIB} MiB up"), format!("relay: {MIB} MiB down"), "relay: ping-pong".to_owned()]
            .iter()
            .enumerate()
    {
        let reference = column(&host, number);
        report.row(name, column(&guest, number), Some(("host loopback, same script", &reference)), "");
    }
}

/// Serves one connection, whose first byte says what is wanted, and returns how many milliseconds it took.
fn serve(mut stream: &TcpStream) -> io::Result<f64> {
    stream.set_nodelay(true)?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    let start = Instant::now();
    let mut buffer = vec![0; 1 << 18];
    match order[0] {
        b'u' => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(b"!")?;
        }
        b'd' => {
            for _ in 0..MIB * 4 {
                stream.write_all(&buffer)?;
            }
            // Until the other side has read it all and closed.
            stream.shutdown(Shutdown::Write)?;
            while stream.read(&mut buffer)? > 0 {}
        }
        _ => {
            while let length @ 1.. = stream.read(&mut buffer)? {
                stream.write_all(&buffer[..length])?;
            }
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}
