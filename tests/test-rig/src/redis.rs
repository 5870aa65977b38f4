//! A real Redis on loopback, with nothing in it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::free_port::free_port;
use crate::processes::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the server for as long as its standard input is open: that is closed even if the test is killed.
const LIFELINE: &str = r#""$@" & server=$!; cat; kill -9 $server; wait $server"#;

/// Debian's redis-server, which keeps everything in memory.
pub struct TestRedis {
    server: Child,
    port: u16,
    data: TempDir,
}

impl TestRedis {
    /// # Panics
    /// When `redis-server` is not installed or does not come up.
    #[must_use]
    pub fn start() -> Self {
        let data = TempDir::with_prefix("iii-redis-").expect("a temporary folder");
        let port = free_port();
        let server = serve(port, &data);
        Self { server, port, data }
    }

    /// `redis://127.0.0.1:port`
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends the server as `kill -9` does: its connections break, and new ones are refused.
    pub fn kill(&mut self) {
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }

    /// Starts it anew at the same address, with nothing in it.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        self.server = serve(self.port, &self.data);
    }
}

fn serve(port: u16, data: &TempDir) -> Child {
    let known = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    assert!(known.is_ok_and(|status| status.success()), "redis-server is installed (Debian's package redis-server)");
    let server = Command::new("sh")
        .args(["-c", LIFELINE, "sh", "redis-server", "--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(data.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let up = eventually(PATIENCE, || answers(port).then_some(()));
    assert!(up.is_some(), "redis-server did not come up on port {port}");
    server
}

fn answers(port: u16) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 7];
    let _ = connection.set_read_timeout(Some(PATIENCE));
    connection.write_all(b"PING\r\n").and_then(|()| connection.read_exact(&mut answer)).is_ok()
        && &answer == b"+PONG\r\n"
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_answers_until_it_is_killed_and_again_when_it_is_restarted() {
        let mut redis = TestRedis::start();
        assert!(answers(redis.port));
        redis.kill();
        assert!(!answers(redis.port));
        redis.restart();
        assert!(answers(redis.port));
        let port = redis.port;
        drop(redis);
        assert!(!answers(port));
    }
}
