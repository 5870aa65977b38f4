//! A real Prometheus on loopback, which scrapes one endpoint into throw-away data.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::processes::eventually;

/// Debian's prometheus. It dies with the thread that started it.
pub struct Prometheus {
    server: Child,
    address: SocketAddr,
    _data: TempDir,
}

impl Prometheus {
    /// Starts one on a free port that scrapes `/metrics` of `target` every second.
    ///
    /// # Panics
    /// When `prometheus` or `setpriv` is not installed, or it does not come up.
    #[must_use]
    pub fn scraping(target: SocketAddr) -> Self {
        let data = TempDir::with_prefix("iii-prometheus-").expect("a temporary folder");
        let config = data.path().join("prometheus.yml");
        let yaml = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n  - job_name: iii\n    static_configs:\n      - targets: ['{target}']\n"
        );
        fs::write(&config, yaml).expect("Prometheus' configuration");
        let mut server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "prometheus", "--web.listen-address=127.0.0.1:0"])
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv is installed (util-linux)");
        let said = BufReader::new(server.stderr.take().expect("a pipe"));
        let (sender, receiver) = std::sync::mpsc::channel();
        // Reads to the end, so that what it says never waits for a reader.
        thread::spawn(move || {
            let mut log = String::new();
            for line in said.lines().map_while(Result::ok) {
                if let Some(address) = listening(&line) {
                    let _ = sender.send(Ok(address));
                }
                log.push_str(&line);
                log.push('\n');
            }
            let _ = sender.send(Err(log));
        });
        let address = match receiver.recv_timeout(Duration::from_secs(60)) {
            Ok(Ok(address)) => address,
            Ok(Err(log)) => panic!("prometheus did not come up (./setup test): {log}"),
            Err(error) => panic!("prometheus did not say where it listens: {error}"),
        };
        let prometheus = Self { server, address, _data: data };
        let ready = eventually(Duration::from_secs(60), || prometheus.get("/-/ready"));
        assert!(ready.is_some(), "prometheus listens and is not ready");
        prometheus
    }

    /// What it answers with status 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).expect("Prometheus listens");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with a body");
        head.split_whitespace().nth(1).filter(|status| *status == "200").map(|_| body.to_owned())
    }

    /// The samples that a query finds now, as its HTTP API tells them: `[{metric: {..}, value: [time, text]}]`.
    ///
    /// # Panics
    /// When it cannot be asked, or does not know what is asked.
    #[must_use]
    pub fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let body = self.get(&format!("/api/v1/query?query={encoded}"));
        let body = body.unwrap_or_else(|| panic!("Prometheus does not answer {query}"));
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(body["status"], "success", "{body}");
        body["data"]["result"].as_array().cloned().expect("samples")
    }

    /// Asks until there are samples.
    ///
    /// # Panics
    /// When there are none in a minute.
    #[must_use]
    pub fn await_samples(&self, query: &str) -> Vec<Value> {
        let found = eventually(Duration::from_secs(60), || Some(self.query(query)).filter(|found| !found.is_empty()));
        found.unwrap_or_else(|| panic!("Prometheus has no `{query}`; targets: {:?}", self.query("up")))
    }
}

/// The address in the line that says where it listens.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("msg=\"Listening on\" address=")?;
    address.split_whitespace().next()?.parse().ok()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
