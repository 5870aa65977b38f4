//! A real image registry on loopback, filled by `skopeo`.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::free_port::free_port;
use crate::processes::eventually;
use crate::rig::shared_home;

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
        let port = free_port();
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

    /// Pushes a small image that is like no other, and returns its reference.
    ///
    /// # Panics
    /// When `umoci` or `skopeo` is not installed.
    #[must_use]
    pub fn push_new(&self, name: &str) -> String {
        let folder = self.data.path().join("new-image");
        fs::create_dir_all(folder.join("bin")).expect("a folder");
        let content: Vec<u8> = (0..4096).flat_map(|_| uuid_like()).collect();
        fs::write(folder.join("bin/sh"), content).expect("a file");
        let layout = folder.join("layout");
        let image = format!("{}:latest", layout.display());
        umoci(&["init", "--layout", &layout.display().to_string()]);
        umoci(&["new", "--image", &image]);
        umoci(&["insert", "--rootless", "--image", &image, &folder.join("bin").display().to_string(), "/bin"]);
        self.push(&layout, name)
    }

    /// Pushes the base image `python` with `files` in `/app`, and `command` as its entry point there.
    ///
    /// # Panics
    /// When the base image is not built, or `umoci` or `skopeo` is not installed.
    #[must_use]
    pub fn push_worker(&self, name: &str, files: &[(&str, &str)], command: &[&str]) -> String {
        let folder = self.data.path().join("worker-image");
        let app = folder.join("app");
        fs::create_dir_all(&app).expect("a folder");
        for (path, content) in files {
            fs::write(app.join(path), content).expect("a file");
        }
        let layout = folder.join("layout");
        let base = shared_home().join("lib/images/python").canonicalize().expect("the base image (make images)");
        let copied = Command::new("cp").arg("-r").arg(base).arg(&layout).status();
        assert!(copied.is_ok_and(|status| status.success()), "the base image cannot be copied");
        let image = format!("{}:latest", layout.display());
        umoci(&["insert", "--rootless", "--image", &image, &app.display().to_string(), "/app"]);
        let mut configure = vec!["config", "--image", &image, "--config.workingdir", "/app"];
        configure.extend(command.iter().flat_map(|word| ["--config.entrypoint", word]));
        umoci(&configure);
        self.push(&layout, name)
    }

    /// Flips a byte in the middle of the largest blob.
    ///
    /// # Panics
    /// When there is none.
    pub fn damage_largest_blob(&self) {
        let largest = self.blobs().into_iter().max_by_key(|path| fs::metadata(path).map_or(0, |about| about.len()));
        let path = largest.expect("a blob");
        let mut bytes = fs::read(&path).expect("the blob");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).expect("the damaged blob");
    }

    fn blobs(&self) -> Vec<PathBuf> {
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

fn umoci(arguments: &[&str]) {
    let output = Command::new("umoci").args(arguments).output().expect("umoci is installed (./setup test)");
    assert!(output.status.success(), "umoci {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sixteen random bytes, from the kernel.
fn uuid_like() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel's UUIDs");
    let digits = text.trim().replace('-', "");
    u128::from_str_radix(&digits, 16).expect("hexadecimal digits").to_be_bytes()
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
