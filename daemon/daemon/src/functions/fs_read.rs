//! `sandbox::fs::read`: always through a channel; short text in the answer as well.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use daemon_api::sandbox::Fs;
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use engine_client::{ChannelWriter, Item};
use guest_client::FileReader;
use serde_json::{Value, json};

use crate::functions::{guest_error, required};
use crate::sandbox::{Activity, Sandboxes, Seat};

/// Text shorter than this is in the answer too.
const MAX_BODY_BYTES: u64 = 1024 * 1024;

const CHANNEL_BUFFER: u16 = 64;

/// How long a reader may take nothing before the read is given up.
const IDLE: Duration = Duration::from_secs(300);

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let path = required(&request, "path", &request.path)?;
    let mut reader = seat.during(async { seat.guest().read(path).await.map_err(guest_error) }).await?;
    let (size, mode, mtime) = (reader.size, format!("{:04o}", reader.mode), reader.mtime);
    let head = if size < MAX_BODY_BYTES { Some(seat.during(whole(&mut reader)).await?) } else { None };
    let body = head.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned);
    let aborted = |error: engine_client::CallError| {
        SandboxError::new(Kind::FsChannelAborted, format!("fs channel aborted: {error}"))
    };
    let pair = sandboxes.client.create_channel(CHANNEL_BUFFER).await.map_err(aborted)?;
    let writer = sandboxes.client.open_writer(&pair.writer).await.map_err(aborted)?;
    tokio::spawn(pass_on(seat, head, reader, writer));
    let mut answer = json!({ "content": pair.reader, "size": size, "mode": mode, "mtime": mtime });
    if let Some(body) = body {
        answer["body"] = body.into();
    }
    Ok(answer)
}

async fn whole(reader: &mut FileReader) -> Result<Bytes, SandboxError> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = reader.next().await.map_err(guest_error)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > 2 * MAX_BODY_BYTES {
            // It has grown since: what came so far is what it was.
            break;
        }
    }
    Ok(bytes.freeze())
}

async fn pass_on(seat: Seat, head: Option<Bytes>, mut reader: FileReader, mut writer: ChannelWriter) {
    let result = match head {
        Some(bytes) => send(&mut writer, bytes).await,
        None => {
            let work = async {
                while let Some(piece) = reader.next().await.map_err(guest_error)? {
                    send(&mut writer, piece).await?;
                }
                Ok(())
            };
            seat.during(work).await
        }
    };
    match result {
        Ok(()) => drop(writer.close().await),
        // Broken off, not closed: what came so far must not look whole.
        Err(error) => {
            let said = json!({ "error": error.into_body() }).to_string();
            let _ = writer.send(Item::Text(said)).await;
        }
    }
}

/// At most 64 KiB a message, as SDKs expect.
async fn send(writer: &mut ChannelWriter, mut bytes: Bytes) -> Result<(), SandboxError> {
    let aborted = |what: String| SandboxError::new(Kind::FsChannelAborted, format!("fs channel aborted: {what}"));
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(64 * 1024));
        match tokio::time::timeout(IDLE, writer.send(Item::Binary(piece))).await {
            Ok(sent) => sent.map_err(|error| aborted(error.to_string()))?,
            Err(_) => return Err(aborted("nobody reads".into())),
        }
    }
    Ok(())
}
