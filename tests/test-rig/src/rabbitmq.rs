//! A real RabbitMQ on loopback, with nothing in it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::free_port::free_port;
use crate::processes::eventually;

/// An Erlang machine, and a broker on it: seconds, more on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// Debian's `rabbitmq-server` on the path gives up rights first; this is what it runs.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// Runs epmd and the server for as long as standard input is open: that is closed even if the test is killed. Epmd is
/// ours, for the one that Erlang would start outlives everything. The server is several processes, hence its session.
const LIFELINE: &str = r#"
setsid epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 & epmd=$!
setsid "$@" & server=$!
cat
kill -s KILL -- -$server -$epmd
wait"#;

/// Debian's rabbitmq-server with throw-away data.
pub struct TestRabbitMq {
    server: Child,
    ports: Ports,
    data: TempDir,
}

#[derive(Clone, Copy)]
struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

impl TestRabbitMq {
    /// # Panics
    /// When `rabbitmq-server` is not installed or does not come up.
    #[must_use]
    pub fn start() -> Self {
        let data = TempDir::with_prefix("iii-rabbitmq-").expect("a temporary folder");
        let ports = Ports { amqp: free_port(), distribution: free_port(), epmd: free_port() };
        let server = serve(ports, data.path());
        Self { server, ports, data }
    }

    /// `amqp://127.0.0.1:port`
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.ports.amqp)
    }

    /// Ends the broker as `kill -9` does: its connections break, and new ones are refused.
    pub fn kill(&mut self) {
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }

    /// Starts it anew at the same address, with what it had on disk.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        self.server = serve(self.ports, self.data.path());
    }
}

fn serve(ports: Ports, data: &Path) -> Child {
    assert!(Path::new(SERVER).exists(), "rabbitmq-server is installed (Debian's package rabbitmq-server)");
    let said = File::create(data.join("said")).expect("a file for what it says");
    let server = Command::new("sh")
        .args(["-c", LIFELINE, "sh", SERVER])
        .env("HOME", data)
        .env("RABBITMQ_NODENAME", format!("iii-{}@localhost", ports.amqp))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_MNESIA_BASE", data.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", data.join("log"))
        .env("RABBITMQ_PID_FILE", data.join("pid"))
        .env("RABBITMQ_CONFIG_FILE", data.join("rabbitmq"))
        .env("RABBITMQ_CONF_ENV_FILE", data.join("rabbitmq-env.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", data.join("plugins"))
        .current_dir(data)
        .stdin(Stdio::piped())
        .stdout(said.try_clone().expect("a second handle"))
        .stderr(said)
        .spawn()
        .expect("a shell");
    let up = eventually(PATIENCE, || answers(ports.amqp).then_some(()));
    assert!(
        up.is_some(),
        "rabbitmq-server did not come up on port {}:\n{}",
        ports.amqp,
        fs::read_to_string(data.join("said")).unwrap_or_default()
    );
    server
}

/// A broker answers the protocol's header with a frame of type 1.
fn answers(port: u16) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0];
    let _ = connection.set_read_timeout(Some(Duration::from_secs(10)));
    connection.write_all(b"AMQP\0\0\x09\x01").and_then(|()| connection.read_exact(&mut answer)).is_ok() && answer == [1]
}

impl Drop for TestRabbitMq {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::{Process, descendants, wait_gone};

    #[test]
    fn a_broker_answers_again_after_a_restart_and_leaves_no_process() {
        let mut broker = TestRabbitMq::start();
        broker.restart();
        assert!(answers(broker.ports.amqp));
        let pid = i32::try_from(broker.server.id()).expect("a pid");
        let processes: Vec<Process> = descendants(pid);
        assert!(processes.iter().any(|process| process.command.contains("epmd")), "{processes:?}");
        let port = broker.ports.amqp;
        drop(broker);
        assert!(!answers(port));
        assert_eq!(wait_gone(&processes, PATIENCE), []);
    }
}
