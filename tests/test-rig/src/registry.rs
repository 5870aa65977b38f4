//! A real image registry on loopback, filled by `skopeo`.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::processes::eventually;

/// Debian's docker-registry with throw-away data.
pub struct TestRegistry {
    server: Child,
    port: u16,
    data: TempDir,
}

impl TestRegistry {
    /// # Panics
    /// When `docker-registry` is not installed or does not come up.
    #[must_use]
    pub fn start() -> Self {
        let data = TempDir::with_prefix("iii-registry-").expect("a temporary folder");
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a free port").port();
        let config = data.path().join("config.yml");
        let yaml = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            data.path().display()
        );
        fs::write(&config, yaml).expect("the registry's configuration");
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (./setup test)");
        let up = eventually(Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port)).ok());
        assert!(up.is_some(), "docker-registry did not come up on port {port}");
        Self { server, port, data }
    }

    /// `127.0.0.1:port`
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Copies an OCI layout into the registry and returns its reference.
    #[must_use]
    pub fn push(&self, layout: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.host());
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{reference}"))
            .status()
            .expect("skopeo is installed (./setup test)");
        assert!(status.success(), "skopeo could not push {reference}");
        reference
    }

    /// The stored files of all blobs, for a test that damages one.
    #[must_use]
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.data.path().join("docker/registry/v2/blobs")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
