//! A guest's TCP through the relay, against the same script on the host's loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use crate::machine::{self, Recipe};
use crate::report::{Report, Samples};

const ROUNDS: usize = 3;
const MIB: usize = 64;
const PINGS: usize = 300;

/// Prints milliseconds: up, down, and one ping-pong.
const SCRIPT: &str = "
import socket, sys, time
host, port, mib, pings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def dial(order):
    link = socket.create_connection((host, port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(order)
    return link
block = bytes(1 << 20)
start = time.monotonic()
link = dial(b'u')
for _ in range(mib):
    link.sendall(block)
link.shutdown(socket.SHUT_WR)
assert link.recv(1) == b'!'
up = time.monotonic() - start
start = time.monotonic()
link, count = dial(b'd'), 0
while data := link.recv(1 << 18):
    count += len(data)
assert count == mib << 20, count
down = time.monotonic() - start
link = dial(b'p')
start = time.monotonic()
for _ in range(pings):
    link.sendall(b'x')
    assert link.recv(1) == b'x'
print(up * 1000, down * 1000, (time.monotonic() - start) * 1000 / pings)
";

pub(crate) fn measure(report: &mut Report) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    let arguments = |host: &str| [host.to_owned(), port.to_string(), MIB.to_string(), PINGS.to_string()];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut guest, mut host) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let folder = machine::folder();
        let root = machine::python_root(folder.path()).await;
        let kit = machine::kit();
        let recipe = Recipe { kit: &kit, root: Some(&root), folder: folder.path(), clone: true, port: Some(port) };
        let (machine, _) = machine::boot(&recipe).await;
        machine.adopt().await;
        for _ in 0..ROUNDS {
            guest.push(numbers(&machine.python(SCRIPT, &arguments("100.96.0.1")).await));
            let output = Command::new("python3").args(["-c", SCRIPT]).args(arguments("127.0.0.1")).output();
            host.push(numbers(&String::from_utf8_lossy(&output.expect("python3 is installed").stdout)));
        }
    });
    let column = |rows: &[[f64; 3]], column: usize| Samples::from_ms(rows.iter().map(|row| row[column]));
    for (number, name) in
        [format!("relay: {MIB} MiB up"), format!("relay: {MIB} MiB down"), "relay: ping-pong".to_owned()]
            .iter()
            .enumerate()
    {
        let reference = column(&host, number);
        report.row(name, column(&guest, number), Some(("host loopback, same script", &reference)), "");
    }
}

fn numbers(text: &str) -> [f64; 3] {
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("no three numbers: {text}"))
}

/// The first byte says what is wanted.
fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut order = [0];
    let _ = stream.read_exact(&mut order);
    let mut buffer = vec![0; 1 << 18];
    match order[0] {
        b'u' => {
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            let _ = stream.write_all(b"!");
        }
        b'd' => {
            for _ in 0..MIB * 4 {
                if stream.write_all(&buffer).is_err() {
                    return;
                }
            }
        }
        _ => {
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        }
    }
}
