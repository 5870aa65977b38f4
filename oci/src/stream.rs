//! One layer's bytes, decompressed on a thread of their own and digested on both sides of it.
//!
//! ```text
//! blob ─ digest ─ gunzip/unzstd ─ (4 buffers) ─► digest ─ Read
//!        thread "oci-unpack"                     caller's thread
//! ```

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::digest::{Digest, Hasher};
use crate::progress::Meter;

const BUFFER_BYTES: usize = 256 << 10;
const BUFFERS: usize = 4;

/// Reads a decompressed layer.
pub(crate) struct LayerStream {
    pieces: Option<Receiver<io::Result<Vec<u8>>>>,
    piece: Vec<u8>,
    at: usize,
    unpacked: Hasher,
    unpacked_bytes: u64,
    compressed_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<Digest>>,
}

/// The digests of a layer that was read to its end.
pub(crate) struct LayerDigests {
    pub(crate) compressed: Digest,
    pub(crate) unpacked: Digest,
}

impl LayerStream {
    /// Starts to decompress `blob`, whose compression its first bytes tell. `meter` counts compressed bytes.
    pub(crate) fn start(blob: Box<dyn Read + Send>, meter: Meter) -> io::Result<Self> {
        let (sender, pieces) = sync_channel(BUFFERS);
        let compressed_bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&compressed_bytes);
        let source = Digesting { blob, hasher: Hasher::default(), counted, meter };
        let thread = std::thread::Builder::new().name("oci-unpack".into()).spawn(move || unpack(source, &sender))?;
        Ok(Self {
            pieces: Some(pieces),
            piece: Vec::new(),
            at: 0,
            unpacked: Hasher::default(),
            unpacked_bytes: 0,
            compressed_bytes,
            thread: Some(thread),
        })
    }

    /// Bytes handed out so far.
    pub(crate) fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Bytes of the blob read so far.
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.compressed_bytes.load(Ordering::Relaxed)
    }

    /// The digests, once everything was read.
    pub(crate) fn finish(mut self) -> io::Result<LayerDigests> {
        self.pieces = None;
        let thread = self.thread.take().ok_or_else(|| io::Error::other("the layer was finished twice"))?;
        let compressed = thread.join().map_err(|_| io::Error::other("the decompressing thread panicked"))?;
        Ok(LayerDigests { compressed, unpacked: std::mem::take(&mut self.unpacked).finish() })
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.pieces.as_ref().map(Receiver::recv) {
                Some(Ok(piece)) => {
                    self.piece = piece?;
                    self.at = 0;
                    self.unpacked.update(&self.piece);
                    self.unpacked_bytes += self.piece.len() as u64;
                }
                // The thread has ended: all was sent.
                Some(Err(_)) | None => return Ok(0),
            }
        }
        let rest = &self.piece[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

impl Drop for LayerStream {
    fn drop(&mut self) {
        // Closing the channel ends the thread at its next piece.
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn unpack(source: Digesting, sender: &SyncSender<io::Result<Vec<u8>>>) -> Digest {
    let mut source = BufReader::with_capacity(BUFFER_BYTES, source);
    let mut send = |piece: io::Result<Vec<u8>>| sender.send(piece).is_ok();
    let outcome = match decompressor(&mut source) {
        Ok(mut plain) => pump(&mut *plain, &mut send),
        Err(error) => Err(error),
    };
    // What follows the compressed stream belongs to the digest too.
    let outcome =
        outcome.and_then(|wanted| if wanted { io::copy(&mut source, &mut io::sink()).map(drop) } else { Ok(()) });
    if let Err(error) = outcome {
        send(Err(error));
    }
    source.into_inner().hasher.finish()
}

fn decompressor<'a>(source: &'a mut BufReader<Digesting>) -> io::Result<Box<dyn Read + 'a>> {
    let head = source.fill_buf()?;
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(source))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(source)?)
    } else {
        Box::new(source)
    })
}

/// Sends everything; `false` when nobody wants the rest.
fn pump(plain: &mut dyn Read, send: &mut impl FnMut(io::Result<Vec<u8>>) -> bool) -> io::Result<bool> {
    loop {
        let mut piece = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        while filled < piece.len() {
            match plain.read(&mut piece[filled..])? {
                0 => break,
                got => filled += got,
            }
        }
        piece.truncate(filled);
        if filled == 0 {
            return Ok(true);
        }
        if !send(Ok(piece)) {
            return Ok(false);
        }
    }
}

/// Digests and counts what is read through it.
struct Digesting {
    blob: Box<dyn Read + Send>,
    hasher: Hasher,
    counted: Arc<AtomicU64>,
    meter: Meter,
}

impl Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.blob.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        self.counted.fetch_add(got as u64, Ordering::Relaxed);
        self.meter.add(got as u64);
        Ok(got)
    }
}
