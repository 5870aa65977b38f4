//! `sandbox::fs::write`: from text, base64, or a channel.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use daemon_api::sandbox::{Content, Fs};
use daemon_api::{SandboxError, SandboxErrorKind as Kind};
use engine_client::{ChannelRef, Client, Item};
use guest_client::FileWriter;
use serde_json::{Value, json};

use crate::functions::{guest_error, mode, required};
use crate::sandbox::{Activity, Sandboxes};

/// A sender that says nothing for this long has gone away.
const IDLE: Duration = Duration::from_secs(30);

pub(crate) async fn call(sandboxes: Arc<Sandboxes>, request: Fs) -> Result<Value, SandboxError> {
    let source = match (request.content.clone(), request.content_b64.as_deref()) {
        (Some(Content::Text(text)), None) => Source::Bytes(text.into_bytes()),
        (Some(Content::Channel(channel)), None) => Source::Channel(channel),
        (None, Some(text)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            Source::Bytes(
                decoded.map_err(|error| SandboxError::invalid(format!("`content_b64` is not base64: {error}")))?,
            )
        }
        _ => return Err(SandboxError::invalid("give `content` or `content_b64`, one of them")),
    };
    let mode = mode(request.mode.as_deref(), 0o644)?;
    let path = required(&request, "path", &request.path)?;
    let seat = sandboxes.enter(&request.sandbox_id, Activity::Files)?;
    let work = async {
        let mut writer = seat.guest().write(path, mode, request.parents.unwrap_or(false)).await.map_err(guest_error)?;
        match source {
            Source::Bytes(bytes) => writer.write(&bytes).await.map_err(guest_error)?,
            Source::Channel(channel) => from_channel(&sandboxes.client, &channel, &mut writer).await?,
        }
        writer.finish().await.map_err(guest_error)
    };
    let bytes = seat.during(work).await?;
    Ok(json!({ "bytes_written": bytes, "path": path }))
}

enum Source {
    Bytes(Vec<u8>),
    Channel(ChannelRef),
}

async fn from_channel(client: &Client, channel: &ChannelRef, writer: &mut FileWriter) -> Result<(), SandboxError> {
    let aborted = |what: String| SandboxError::new(Kind::FsChannelAborted, format!("fs channel aborted: {what}"));
    let mut reader = client.open_reader(channel).await.map_err(|error| aborted(error.to_string()))?;
    loop {
        let item = tokio::time::timeout(IDLE, reader.next()).await;
        match item.map_err(|_| aborted(format!("nothing came for {} s", IDLE.as_secs())))? {
            None => return Ok(()),
            Some(Ok(Item::Binary(bytes))) => writer.write(&bytes).await.map_err(guest_error)?,
            Some(Ok(Item::Text(text))) => writer.write(text.as_bytes()).await.map_err(guest_error)?,
            Some(Err(error)) => return Err(aborted(error.to_string())),
        }
    }
}
