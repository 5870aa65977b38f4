//! One method per request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use guest_protocol::{
    Control, DirEntry, ErrorCode, ExecRequest, GuestFailure, Hello, Identity, Kind, PROTOCOL_VERSION, Reply, Request,
    SuperviseRequest,
};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connection::{Connection, GuestError, Stream, StreamHandle};
use crate::queue::Arrived;
use crate::transfer::{FileReader, FileWriter};

/// A folder with more than this to tell is not listed; 16 MiB are some hundred thousand entries.
const MAX_LISTING_BYTES: usize = 16 * 1024 * 1024;

/// A guest that can be asked. Clones are the same guest; the connection ends with the last of them.
#[derive(Clone)]
pub struct Guest(pub(crate) Arc<Connection>);

/// What a guest says about itself once it has become somebody.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// `uname -r`
    pub kernel: String,
    pub boot_id: String,
}

impl Adopted {
    pub(crate) fn from_reply(reply: Reply) -> Result<Self, GuestError> {
        match reply {
            Reply::Adopted { kernel, boot_id, version: PROTOCOL_VERSION } => Ok(Self { kernel, boot_id }),
            Reply::Adopted { version, .. } => Err(GuestError::Request(format!(
                "the kit's init speaks version {version} of the guest protocol, this program version {PROTOCOL_VERSION}: \
                 run `make kit`"
            ))),
            other => Err(unexpected(&other)),
        }
    }
}

/// What a program does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Comes last. `code` is 128 + n after signal n.
    Exited {
        code: i32,
        timed_out: bool,
    },
}

/// A program that runs in a guest. Dropping it kills the program.
pub struct Exec {
    stream: Stream,
}

/// Standard input, resizes and signals of an [`Exec`]; can be held by another task.
#[derive(Clone)]
pub struct Input(StreamHandle);

/// What a supervised program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SupervisedEvent {
    Started {
        pid: u32,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    /// The program has ended by itself, or on the way to a restart. It stays down until `restart`.
    Exited {
        code: i32,
    },
    /// After `stop`; comes last.
    Ended,
}

/// A long-running program under the guest's supervision. Dropping it stops the program.
pub struct Supervised {
    stream: Stream,
}

impl Guest {
    /// Takes the host's end of a guest's channel. Must be called inside a runtime.
    ///
    /// # Errors
    /// The descriptor cannot be used.
    pub fn connect(channel: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Connection::start(channel).map(Self)
    }

    /// Waits for the first words of a guest that boots. A clone of a template says none: just adopt it.
    ///
    /// # Errors
    /// The channel ended before.
    pub async fn ready(&self) -> Result<Hello, GuestError> {
        self.0.ready().await
    }

    /// Resolves when the channel has ended.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    pub(crate) async fn ask(&self, request: &Request) -> Result<Reply, GuestError> {
        self.0.open(request).await?.reply().await
    }

    pub(crate) async fn ask_done(&self, request: &Request) -> Result<(), GuestError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_count(&self, request: &Request) -> Result<u64, GuestError> {
        match self.ask(request).await? {
            Reply::Count { count } => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The channel has ended.
    pub async fn ping(&self) -> Result<(), GuestError> {
        self.ask_done(&Request::Ping).await
    }

    /// # Errors
    /// The step that failed, in the guest's words; the guest is of no use then.
    pub async fn adopt(&self, identity: Identity) -> Result<Adopted, GuestError> {
        Adopted::from_reply(self.ask(&Request::Adopt(Box::new(identity))).await?)
    }

    /// Starts a program. One that does not exist runs and exits with status 127, as in a shell.
    ///
    /// # Errors
    /// The request makes no sense, or a file of it could not be written; nothing runs.
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, GuestError> {
        let mut stream = self.0.open(&Request::Exec(Box::new(request))).await?;
        match stream.reply().await? {
            Reply::Started { .. } => Ok(Exec { stream }),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The channel has ended. What becomes of the program arrives as events.
    pub async fn supervise(&self, request: SuperviseRequest) -> Result<Supervised, GuestError> {
        let stream = self.0.open(&Request::Supervise(Box::new(request))).await?;
        Ok(Supervised { stream })
    }

    /// Applies a tar stream to `root`, all at once, and removes `delete`; see `Request::Sync`.
    /// Returns how many files arrived and how many entries were removed.
    ///
    /// # Errors
    /// The archive or a path is refused, or a step failed; nothing was applied unless the failure came in that step.
    pub async fn sync(
        &self,
        root: &str,
        delete: Vec<String>,
        replace: bool,
        keep: Vec<String>,
        mut archive: impl AsyncRead + Unpin,
    ) -> Result<(u64, u64), GuestError> {
        let mut stream = self.0.open(&Request::Sync { root: root.to_owned(), delete, replace, keep }).await?;
        let handle = stream.handle();
        let mut buffer = vec![0; guest_protocol::DATA_CHUNK_BYTES];
        loop {
            let length = match archive.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) => return Err(GuestError::Request(format!("the archive could not be read: {error}"))),
            };
            match handle.input(&buffer[..length]).await {
                Ok(()) => {}
                // The guest has an answer already.
                Err(GuestError::Closed) => break,
                Err(error) => return Err(error),
            }
        }
        handle.end_input().await?;
        match stream.reply().await? {
            Reply::Synced { files, deleted } => Ok((files, deleted)),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The guest's answer.
    pub async fn list(&self, path: &str) -> Result<Vec<DirEntry>, GuestError> {
        let mut stream = self.0.open(&Request::List { path: path.to_owned() }).await?;
        let mut text = Vec::new();
        loop {
            match stream.next().await? {
                Arrived::Data(_, bytes) => text.extend_from_slice(&bytes),
                Arrived::Reply { reply: Reply::Done, .. } => break,
                Arrived::Reply { reply: Reply::Failed(failure), .. } => return Err(failure.into()),
                Arrived::Reply { reply, .. } => return Err(unexpected(&reply)),
            }
            if text.len() > MAX_LISTING_BYTES {
                let message = format!("{path}: its entries take more than {} MiB", MAX_LISTING_BYTES >> 20);
                return Err(GuestFailure { code: ErrorCode::TooLarge, message }.into());
            }
        }
        serde_json::from_slice(&text).map_err(|error| GuestError::Broken(format!("a listing: {error}")))
    }

    /// # Errors
    /// The guest's answer.
    pub async fn stat(&self, path: &str) -> Result<DirEntry, GuestError> {
        match self.ask(&Request::Stat { path: path.to_owned() }).await? {
            Reply::Entry { entry } => Ok(entry),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The guest's answer; while reading, the reader's.
    pub async fn read(&self, path: &str) -> Result<FileReader, GuestError> {
        let mut stream = self.0.open(&Request::Read { path: path.to_owned() }).await?;
        match stream.reply().await? {
            Reply::File { size, mode, mtime } => Ok(FileReader::new(stream, size, mode, mtime)),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The channel has ended. What the guest says of the path comes from the writer.
    pub async fn write(&self, path: &str, mode: u32, parents: bool) -> Result<FileWriter, GuestError> {
        let stream = self.0.open(&Request::Write { path: path.to_owned(), mode, parents }).await?;
        Ok(FileWriter::new(stream))
    }

    /// Returns whether the directory was created.
    ///
    /// # Errors
    /// The guest's answer.
    pub async fn make_dir(&self, path: &str, mode: u32, parents: bool) -> Result<bool, GuestError> {
        let count = self.ask_count(&Request::MakeDir { path: path.to_owned(), mode, parents }).await?;
        Ok(count > 0)
    }

    /// # Errors
    /// The guest's answer.
    pub async fn remove(&self, path: &str, recursive: bool) -> Result<(), GuestError> {
        self.ask_done(&Request::Remove { path: path.to_owned(), recursive }).await
    }

    /// Returns the number of changed entries.
    ///
    /// # Errors
    /// The guest's answer.
    pub async fn change_mode(
        &self,
        path: &str,
        mode: u32,
        owner: (Option<u32>, Option<u32>),
        recursive: bool,
    ) -> Result<u64, GuestError> {
        let (uid, gid) = owner;
        self.ask_count(&Request::ChangeMode { path: path.to_owned(), mode, uid, gid, recursive }).await
    }

    /// # Errors
    /// The guest's answer.
    pub async fn rename(&self, from: &str, to: &str, overwrite: bool) -> Result<(), GuestError> {
        self.ask_done(&Request::Rename { from: from.to_owned(), to: to.to_owned(), overwrite }).await
    }

    /// Ends all programs and powers off.
    ///
    /// # Errors
    /// The channel ended first; the VM is going all the same.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask_done(&Request::Shutdown { grace_ms }).await
    }
}

fn unexpected(reply: &Reply) -> GuestError {
    GuestError::Broken(format!("an answer to another question: {reply:?}"))
}

impl Exec {
    #[must_use]
    pub fn input(&self) -> Input {
        Input(self.stream.handle())
    }

    /// What the program does next; the last is `Exited`. Cancel safe.
    ///
    /// # Errors
    /// The channel ended, or the guest gave up on the program.
    pub async fn next(&mut self) -> Result<Output, GuestError> {
        loop {
            match self.stream.next().await? {
                Arrived::Data(Kind::ErrorOutput, bytes) => return Ok(Output::Stderr(bytes)),
                Arrived::Data(_, bytes) => return Ok(Output::Stdout(bytes)),
                Arrived::Reply { reply: Reply::Exited { code, timed_out }, .. } => {
                    return Ok(Output::Exited { code, timed_out });
                }
                Arrived::Reply { reply: Reply::Failed(failure), .. } => return Err(failure.into()),
                Arrived::Reply { .. } => {}
            }
        }
    }
}

impl Input {
    /// Sends bytes to the program's standard input, as fast as it reads.
    ///
    /// # Errors
    /// `Closed` when the program has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), GuestError> {
        self.0.input(bytes).await
    }

    /// End of file.
    ///
    /// # Errors
    /// The channel has ended.
    pub async fn close(&self) -> Result<(), GuestError> {
        self.0.end_input().await
    }

    /// # Errors
    /// The channel has ended.
    pub async fn control(&self, control: Control) -> Result<(), GuestError> {
        self.0.control(&control).await
    }
}

impl Supervised {
    /// What the program does next; the last is `Ended`. Cancel safe.
    ///
    /// # Errors
    /// The channel ended, or the program could not be started.
    pub async fn next(&mut self) -> Result<SupervisedEvent, GuestError> {
        match self.stream.next().await? {
            Arrived::Data(Kind::ErrorOutput, bytes) => Ok(SupervisedEvent::Stderr(bytes)),
            Arrived::Data(_, bytes) => Ok(SupervisedEvent::Stdout(bytes)),
            Arrived::Reply { reply: Reply::Started { pid }, .. } => Ok(SupervisedEvent::Started { pid }),
            Arrived::Reply { reply: Reply::Exited { code, .. }, .. } => Ok(SupervisedEvent::Exited { code }),
            Arrived::Reply { reply: Reply::Done, .. } => Ok(SupervisedEvent::Ended),
            Arrived::Reply { reply: Reply::Failed(failure), .. } => Err(failure.into()),
            Arrived::Reply { reply, .. } => Err(unexpected(&reply)),
        }
    }

    /// # Errors
    /// The channel has ended.
    pub async fn restart(&self) -> Result<(), GuestError> {
        self.stream.handle().control(&Control::Restart).await
    }

    /// # Errors
    /// The channel has ended.
    pub async fn stop(&self) -> Result<(), GuestError> {
        self.stream.handle().control(&Control::Stop).await
    }
}
