//! Merges an image's layers into one EROFS file: blocking work, on a thread of its own.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::digest::Digest;
use crate::erofs::{self, ContentWriter, WriteError};
use crate::error::PullError;
use crate::layer::{LayerError, Merger};
use crate::progress::{Meter, Phase};
use crate::source::{LayerBlob, Layers};
use crate::stream::LayerStream;

/// What is to be made.
pub(crate) struct Job<'a> {
    /// The reference, for messages.
    pub(crate) image: &'a str,
    /// Names the image inside its superblock.
    pub(crate) digest: &'a Digest,
    pub(crate) diff_ids: &'a [Digest],
    pub(crate) image_bytes: u64,
    /// Created; must not exist.
    pub(crate) target: &'a Path,
    /// For temporary files.
    pub(crate) scratch: &'a Path,
    pub(crate) cancelled: &'a AtomicBool,
    pub(crate) meter: &'a Meter,
    /// Counts compressed bytes as they are unpacked.
    pub(crate) unpacking: &'a Meter,
}

impl Job<'_> {
    /// Makes the image from `layers`, which come in order. On failure the target is left for the caller to remove.
    pub(crate) fn run(&self, mut layers: Layers) -> Result<(), PullError> {
        let image = OpenOptions::new().read(true).write(true).create_new(true).open(self.target);
        let image = image.map_err(|error| PullError::io("create", self.target, error))?;
        let spool = tempfile::tempfile_in(self.scratch)
            .map_err(|error| PullError::io("create a file in", self.scratch, error))?;
        let mut merger = Merger::new(ContentWriter::new(image, spool), self.cancelled);
        for (index, diff_id) in self.diff_ids.iter().enumerate() {
            let layer = layers.blocking_recv().ok_or_else(|| self.cancelled())??;
            self.layer(&mut merger, index + 1, layer, diff_id)?;
        }
        self.meter.enter(Phase::Finishing, 0);
        let number = self.diff_ids.len();
        if !merger.complete().map_err(|error| self.refused(number, error))? {
            return Err(PullError::NoBin { image: self.image.to_owned() });
        }
        erofs::write(&merger.tree, merger.contents, self.digest.uuid(), self.image_bytes).map_err(|error| match error {
            WriteError::TooLarge { needed, limit } => {
                PullError::TooLarge { image: self.image.to_owned(), needed, limit }
            }
            WriteError::Io(error) => PullError::io("write", self.target, error),
        })
    }

    fn layer(
        &self,
        merger: &mut Merger<'_>,
        number: usize,
        layer: LayerBlob,
        diff_id: &Digest,
    ) -> Result<(), PullError> {
        let stream = LayerStream::start(layer.open()?, self.unpacking.clone());
        let mut stream = stream.map_err(|error| PullError::io("read", self.scratch, error))?;
        if let Err(error) = merger.layer(&mut stream) {
            drop(stream);
            // A damaged blob fails in any way; that it is damaged is what there is to say.
            layer.promise.map_or(Ok(()), |promise| promise.recheck(number))?;
            return Err(self.refused(number, error));
        }
        let digests = stream.finish().map_err(|error| PullError::io("read", self.scratch, error))?;
        if let Some(promise) = layer.promise {
            promise.check(number, digests.compressed)?;
        }
        if *diff_id != digests.unpacked {
            let (what, expected) = (format!("unpacked layer {number}"), diff_id.clone());
            return Err(PullError::DigestMismatch { what, expected, found: digests.unpacked });
        }
        Ok(())
    }

    fn refused(&self, number: usize, error: LayerError) -> PullError {
        match error {
            LayerError::Cancelled => self.cancelled(),
            LayerError::Write(error) => PullError::io("write", self.target, error),
            error => PullError::BadLayer { image: self.image.to_owned(), number, source: Box::new(error) },
        }
    }

    fn cancelled(&self) -> PullError {
        PullError::Cancelled { image: self.image.to_owned() }
    }
}

/// Flushes a directory's entries to disk.
pub(crate) fn sync_directory(path: &Path) -> Result<(), PullError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| PullError::io("flush", path, error))
}
