//! Ethernet frames on a stream, each behind a 4-byte big-endian length: the framing of QEMU's `stream` backend and of
//! libkrun's `krun_add_net_unixstream`.

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Largest frame that is taken: no offload was offered, so what is larger than an Ethernet frame is a broken peer.
/// The margin is for guests that were given a larger MTU.
const MAX_FRAME_BYTES: usize = 65_550;

/// Frames that wait for the stack, and for the guest.
pub(crate) const QUEUE_FRAMES: usize = 1024;

/// Reads frames until the link ends.
pub(crate) async fn read(mut link: OwnedReadHalf, frames: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let mut buffer = bytes::BytesMut::with_capacity(256 * 1024);
    loop {
        while let Some(header) = buffer.first_chunk::<4>() {
            let length = u32::from_be_bytes(*header) as usize;
            if length > MAX_FRAME_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
            }
            if buffer.len() < 4 + length {
                break;
            }
            let _ = buffer.split_to(4);
            if frames.send(buffer.split_to(length).to_vec()).await.is_err() {
                return Ok(());
            }
        }
        buffer.reserve(128 * 1024);
        if link.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Writes frames, as many as there are in one go.
pub(crate) async fn write(mut link: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(256 * 1024);
    let mut batch: VecDeque<Vec<u8>> = VecDeque::new();
    while let Some(frame) = frames.recv().await {
        batch.push_back(frame);
        while batch.len() < 128
            && let Ok(frame) = frames.try_recv()
        {
            batch.push_back(frame);
        }
        buffer.clear();
        for frame in batch.drain(..) {
            buffer.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(0).to_be_bytes());
            buffer.extend_from_slice(&frame);
        }
        link.write_all(&buffer).await?;
    }
    Ok(())
}
