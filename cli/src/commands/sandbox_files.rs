//! `iii worker sandbox upload` and `download`: one file through a data channel.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine_client::{ChannelRef, ChannelWriter, Item};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Outcome;
use crate::arguments::{Download, Upload};
use crate::commands::LONG;
use crate::connection::Connection;
use crate::failure::Failure;

const CHUNK_BYTES: usize = 64 * 1024;

/// Messages in flight.
const CHANNEL_BUFFER: u16 = 16;

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

pub(crate) async fn upload(arguments: Upload) -> Outcome {
    let source: Box<dyn Read + Send> = if is_dash(&arguments.local) {
        Box::new(std::io::stdin())
    } else {
        let failed = |error| Failure::new(format!("could not read {}: {error}", arguments.local.display()));
        Box::new(File::open(&arguments.local).map_err(failed)?)
    };
    let connection = Connection::open(&arguments.to.address).await?;
    let channel = connection.client().create_channel(CHANNEL_BUFFER).await?;
    let writer = connection.client().open_writer(&channel.writer).await?;
    let request = json!({
        "sandbox_id": arguments.id, "path": arguments.remote, "mode": arguments.mode, "parents": arguments.parents,
        "content": channel.reader,
    });
    let answer = {
        let call = connection.ask("sandbox::fs::write", &request, LONG);
        tokio::pin!(call);
        tokio::select! {
            // A refusal comes while there is still something to send.
            answer = &mut call => answer?,
            sent = send(source, writer) => match sent {
                Ok(()) => call.await?,
                Err(Sending::Read(error)) => {
                    return Err(Failure::new(format!("could not read {}: {error}", arguments.local.display())));
                }
                // The other side has left: its answer says why.
                Err(Sending::Channel) => call.await?,
            },
        }
    };
    connection.close().await;
    if arguments.to.json {
        println!("{answer:#}");
    } else {
        eprintln!("Copied {} bytes to {}", answer["bytes_written"], arguments.remote);
    }
    Ok(0)
}

enum Sending {
    Read(std::io::Error),
    Channel,
}

/// A file that cannot be read to its end must not look whole: the channel is then dropped, not closed.
async fn send(mut source: Box<dyn Read + Send>, mut writer: ChannelWriter) -> Result<(), Sending> {
    let (sender, mut pieces) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let piece = match source.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        writer.send(Item::Binary(piece.map_err(Sending::Read)?)).await.map_err(|_| Sending::Channel)?;
    }
    writer.close().await.map_err(|_| Sending::Channel)
}

pub(crate) async fn download(arguments: Download) -> Outcome {
    let connection = Connection::open(&arguments.to.address).await?;
    let request = json!({ "sandbox_id": arguments.id, "path": arguments.remote });
    let answer = connection.ask("sandbox::fs::read", &request, LONG).await?;
    let size = answer["size"].as_u64();
    let channel: ChannelRef = serde_json::from_value(answer["content"].clone())
        .map_err(|error| Failure::new(format!("sandbox::fs::read gave no channel: {error}")))?;
    let mut reader = connection.client().open_reader(&channel).await?;
    let mut target = Target::open(&arguments.local)?;
    let mut written = 0;
    while let Some(item) = reader.next().await {
        match item? {
            Item::Binary(bytes) => {
                written += bytes.len() as u64;
                target.write(&bytes)?;
            }
            Item::Text(text) => return Err(Failure::new(format!("the file could not be read to its end: {text}"))),
        }
    }
    if size.is_some_and(|size| written < size) {
        return Err(Failure::new(format!("only {written} of {} bytes came", size.unwrap_or(0))));
    }
    target.finish()?;
    connection.close().await;
    if !is_dash(&arguments.local) {
        eprintln!("Copied {written} bytes to {}", arguments.local.display());
    }
    Ok(0)
}

/// A file that appears only when it is whole, or standard output.
enum Target {
    Stdout,
    File { file: File, temporary: PathBuf, path: PathBuf },
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        if is_dash(path) {
            return Ok(Self::Stdout);
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create_new(&temporary)
            .map_err(|error| Failure::new(format!("could not create {}: {error}", temporary.display())))?;
        Ok(Self::File { file, temporary, path: path.to_owned() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => std::io::stdout()
                .write_all(bytes)
                .map_err(|error| Failure::new(format!("could not write to standard output: {error}"))),
            Self::File { file, path, .. } => file
                .write_all(bytes)
                .map_err(|error| Failure::new(format!("could not write {}: {error}", path.display()))),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match &self {
            Self::Stdout => {
                let _ = std::io::stdout().flush();
                Ok(())
            }
            Self::File { temporary, path, .. } => std::fs::rename(temporary, path)
                .map_err(|error| Failure::new(format!("could not rename to {}: {error}", path.display()))),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File { temporary, .. } = self {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
