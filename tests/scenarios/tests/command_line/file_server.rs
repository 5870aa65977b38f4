//! A server of files on loopback that can be told to misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// How a file is sent.
#[derive(Clone)]
pub(crate) enum File {
    Whole(Vec<u8>),
    /// The connection ends in the middle.
    Cut(Vec<u8>),
    /// Half of it comes, and then nothing for as long as somebody waits.
    Stalled(Vec<u8>),
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, File>,
    requests: Vec<String>,
}

pub(crate) struct FileServer {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

impl FileServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&server);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/releases", self.port)
    }

    /// Puts a file below the address, in place of an earlier one.
    pub(crate) fn put(&self, path: &str, file: File) {
        self.shared.lock().expect("the files").files.insert(format!("/releases/{path}"), file);
    }

    /// What was asked for so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.lock().expect("the files").requests.clone()
    }
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    while line.trim_end() != "" {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
    }
    let file = {
        let mut shared = shared.lock().expect("the files");
        shared.requests.push(path.clone());
        shared.files.get(&path).cloned()
    };
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n").into_bytes()
    };
    // Whoever asked may have left.
    let _ = match file {
        None => stream.write_all(&head("404 Not Found", 0)),
        Some(File::Whole(body)) => stream.write_all(&[head("200 OK", body.len()), body].concat()),
        Some(File::Cut(body) | File::Stalled(body)) if body.is_empty() => Ok(()),
        Some(File::Cut(body)) => {
            let _ = stream.write_all(&[head("200 OK", body.len()), body[..body.len() / 2].to_vec()].concat());
            stream.shutdown(Shutdown::Both)
        }
        Some(File::Stalled(body)) => {
            let _ = stream.write_all(&[head("200 OK", body.len()), body[..body.len() / 2].to_vec()].concat());
            // Until the other side closes.
            reader.read_line(&mut line).map(drop)
        }
    };
}
