//! An engine of its own, in a folder of its own.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::server::{Server, free_port};

pub(crate) struct Engine {
    server: Server,
    pub(crate) port: u16,
    _folder: TempDir,
}

/// The engine beside this program.
pub(crate) fn of_this_build() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    own.with_file_name("iii-engine")
}

impl Engine {
    /// Starts it without daemons, and waits until it listens.
    pub(crate) fn start(program: &Path) -> Self {
        Self::with(program, "")
    }

    /// Starts it with more built-in workers than those that are always there: further entries of config.yaml.
    pub(crate) fn with(program: &Path, workers: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let config =
            format!("workers:\n  - name: iii-worker-manager\n    config: {{host: 127.0.0.1, port: {port}}}\n{workers}");
        let file = folder.path().join("config.yaml");
        fs::write(&file, config).expect("written");
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(&file)
            .current_dir(folder.path())
            .env("III_HOME", folder.path())
            .env("IIIWORKER_DISABLE_BUILTIN_DAEMONS", "1");
        let server = Server::start(&mut command, port).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self { server, port, _folder: folder }
    }
}

impl Deref for Engine {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
