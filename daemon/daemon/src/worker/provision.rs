//! Brings source and dependencies into a worker's guest.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon_api::WorkerError;
use daemon_api::worker::Phase;
use futures_util::stream;
use guest_client::{Guest, GuestError, Output};
use guest_protocol::ExecRequest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::worker::logs::{self, printable};
use crate::worker::project::Plan;
use crate::worker::report::Teller;
use crate::worker::source;
use crate::worker::watch::Change;

/// Where a worker's source is in its guest.
pub(crate) const ROOT: &str = "/workspace";

/// On the worker's own disk: what was set up and installed there.
const MARK: &str = "/var/.iii-prepared";

/// Of an archive on its way.
const CHUNK_BYTES: usize = 128 * 1024;
const CHUNKS_IN_FLIGHT: usize = 8;

/// One worker's source and guest.
pub(crate) struct Provision<'a> {
    pub(crate) teller: &'a Teller,
    pub(crate) guest: &'a Guest,
    pub(crate) folder: &'a Path,
    pub(crate) plan: &'a Plan,
    /// Digest of the image the guest runs.
    pub(crate) image: String,
}

/// What was done to a disk. A part that differs from what is asked for is done again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Prepared {
    setup: String,
    install: String,
}

impl Provision<'_> {
    /// Sends what has changed; nothing in the guest changes until all of it has arrived.
    pub(crate) async fn copy(&self, change: &Change) -> Result<(), WorkerError> {
        let (paths, gone, replace) = match change {
            Change::Everything => (vec![PathBuf::new()], Vec::new(), true),
            Change::Paths(paths) => {
                let (there, gone) = source::split(self.folder, paths);
                (there, gone, false)
            }
        };
        if paths.is_empty() && gone.is_empty() {
            return Ok(());
        }
        if replace {
            self.teller.say(Phase::Preparing, "copying the source");
        }
        let keep = source::KEPT_BY_GUEST.map(str::to_owned).to_vec();
        let archive = StreamReader::new(Box::pin(packed(self.folder.to_owned(), paths)));
        let synced = self.guest.sync(ROOT, gone, replace, keep, archive).await;
        synced.map(|_| ()).map_err(|error| self.teller.guest_failure("source", &error))
    }

    /// Runs `setup` and `install` as far as this disk has not seen them yet.
    pub(crate) async fn install(&self) -> Result<(), WorkerError> {
        let folder = self.folder.to_owned();
        let dependencies = tokio::task::spawn_blocking(move || source::dependency_digest(&folder)).await;
        let wanted = Prepared {
            setup: digest(&[&self.plan.setup, &self.image]),
            install: digest(&[&self.plan.setup, &self.plan.install, &self.image, &dependencies.unwrap_or_default()]),
        };
        let found = self.prepared().await?;
        if found == wanted {
            return Ok(());
        }
        if found.setup != wanted.setup {
            self.step("setup", &self.plan.setup).await?;
        }
        self.step("install", &self.plan.install).await?;
        // What was installed reaches the disk before the mark does.
        let _ = self.run("sync").await?;
        let text = serde_json::to_vec(&wanted).unwrap_or_default();
        let writing = async {
            let mut file = self.guest.write(MARK, 0o600, true).await?;
            file.write(&text).await?;
            file.finish().await
        };
        writing.await.map(|_| ()).map_err(|error: GuestError| self.teller.guest_failure("install", &error))
    }

    async fn prepared(&self) -> Result<Prepared, WorkerError> {
        let reading = async {
            let mut file = self.guest.read(MARK).await?;
            let mut text = Vec::new();
            while let Some(bytes) = file.next().await? {
                // The guest is not trusted with our memory.
                if text.len() + bytes.len() > 4096 {
                    return Ok(Vec::new());
                }
                text.extend_from_slice(&bytes);
            }
            Ok(text)
        };
        match reading.await {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(GuestError::Failed(_)) => Ok(Prepared::default()),
            Err(error) => Err(self.teller.guest_failure("install", &error)),
        }
    }

    async fn step(&self, step: &'static str, script: &str) -> Result<(), WorkerError> {
        if script.trim().is_empty() {
            return Ok(());
        }
        self.teller.say(Phase::Installing, &format!("{step}: {script}"));
        self.teller.log.new_chapter();
        self.teller.log.note(&format!("{step}: {script}"));
        match self.run(script).await.map_err(|error| with_step(error, step))? {
            0 => Ok(()),
            code => {
                let reason = format!("`{script}` ended with exit status {code}");
                Err(self.teller.failure(step, reason, Some(code)))
            }
        }
    }

    /// Runs a shell script and returns its exit status.
    async fn run(&self, script: &str) -> Result<i32, WorkerError> {
        let failed = |error: GuestError| self.teller.guest_failure("install", &error);
        let request = ExecRequest {
            argv: vec!["/bin/sh".into(), "-c".into(), script.to_owned()],
            workdir: Some(ROOT.to_owned()),
            ..ExecRequest::default()
        };
        let mut running = self.guest.exec(request).await.map_err(failed)?;
        loop {
            match running.next().await.map_err(failed)? {
                Output::Stdout(bytes) => self.heard(logs::Output::Stdout, &bytes),
                Output::Stderr(bytes) => self.heard(logs::Output::Stderr, &bytes),
                Output::Exited { code, .. } => return Ok(code),
            }
        }
    }

    fn heard(&self, output: logs::Output, bytes: &[u8]) {
        self.teller.log.write(output, bytes);
        let line = bytes.split(|byte| *byte == b'\n').map(printable).rfind(|line| !line.is_empty());
        if let Some(line) = line {
            self.teller.change(|report| report.detail = line.chars().take(160).collect());
        }
    }
}

fn with_step(error: WorkerError, wanted: &str) -> WorkerError {
    match error {
        WorkerError::Spawn { worker, reason, exit_code, last_words, .. } => {
            WorkerError::Spawn { worker, step: wanted.to_owned(), reason, exit_code, last_words }
        }
        other => other,
    }
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The archive as it is packed, on a thread of its own. A failure there is an error here, never a shorter archive.
fn packed(folder: PathBuf, paths: Vec<PathBuf>) -> impl stream::Stream<Item = io::Result<Bytes>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(chunks.clone()));
        if let Err(error) = source::pack(&folder, &paths, &mut to).and_then(|()| to.flush()) {
            let _ = chunks.blocking_send(Err(error));
        }
    });
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|chunk| (chunk, receiver)) })
}

struct Chunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
