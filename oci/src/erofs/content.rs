//! The data area: file contents go straight into the image file, while their layer is still being read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::{BLOCK_BYTES, blocks, inline_bytes};

/// Where a file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Length of the file.
    pub(crate) size: u64,
    /// First of its full blocks.
    pub(crate) block: u32,
    /// Bytes that stand behind the inode instead of in a block.
    pub(crate) inline: u16,
    /// Where those bytes wait in the spool.
    pub(crate) spooled_at: u64,
}

impl Content {
    /// Blocks of the data area that hold it.
    pub(crate) fn blocks(&self) -> u64 {
        blocks(self.size - u64::from(self.inline))
    }
}

/// Appends contents to an image file. One content at a time: [`start`](Self::start), `write`s, [`end`](Self::end).
pub(crate) struct ContentWriter {
    pub(super) image: File,
    spool: BufWriter<File>,
    spool_bytes: u64,
    /// Bytes not yet in the file; they begin at block `flushed_blocks`.
    buffer: Vec<u8>,
    flushed_blocks: u64,
    current: Content,
    current_inline: u64,
}

const BUFFER_BYTES: usize = 1 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

impl ContentWriter {
    /// Writes into `image`, which is empty; `spool` is an empty temporary file.
    pub(crate) fn new(image: File, spool: File) -> Self {
        Self {
            image,
            spool: BufWriter::with_capacity(BUFFER_BYTES / 4, spool),
            spool_bytes: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES + BLOCK),
            // Block 0 is the superblock's.
            flushed_blocks: 1,
            current: Content { size: 0, block: 1, inline: 0, spooled_at: 0 },
            current_inline: 0,
        }
    }

    /// Begins a content of exactly `size` bytes whose inode carries `xattr_bytes` of attributes.
    pub(crate) fn start(&mut self, size: u64, xattr_bytes: u64) -> io::Result<()> {
        let block = u32::try_from(self.next_block())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "more than 16 TiB of contents"))?;
        self.current_inline = inline_bytes(size, xattr_bytes);
        self.current = Content { size, block, inline: self.current_inline as u16, spooled_at: self.spool_bytes };
        Ok(())
    }

    /// Appends bytes to the content begun last.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush_full_blocks()?;
            }
        }
        Ok(())
    }

    /// Appends `count` zeros, which cost no disk space where they fill whole blocks.
    pub(crate) fn write_zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if self.buffer.len().is_multiple_of(BLOCK) && count > BLOCK_BYTES {
                self.flush_full_blocks()?;
                self.flushed_blocks += count / BLOCK_BYTES;
                count %= BLOCK_BYTES;
            } else {
                let piece = count.min((BLOCK - self.buffer.len() % BLOCK) as u64);
                self.write(&ZEROS[..piece as usize])?;
                count -= piece;
            }
        }
        Ok(())
    }

    /// Ends the content begun last, all of whose bytes were written.
    pub(crate) fn end(&mut self) -> io::Result<Content> {
        let tail = self.buffer.len() % BLOCK;
        if self.current_inline > 0 {
            debug_assert_eq!(tail as u64, self.current_inline, "all bytes of the content were written");
            let at = self.buffer.len() - tail;
            self.spool.write_all(&self.buffer[at..])?;
            self.spool_bytes += tail as u64;
            self.buffer.truncate(at);
        } else if tail > 0 {
            self.buffer.resize(self.buffer.len() + BLOCK - tail, 0);
        }
        Ok(self.current)
    }

    /// The block the next content begins at.
    pub(super) fn next_block(&self) -> u64 {
        self.flushed_blocks + blocks(self.buffer.len() as u64)
    }

    /// Ends the data area; hands back the image and the spool.
    pub(super) fn finish(mut self) -> io::Result<(File, File)> {
        self.flush_full_blocks()?;
        let spool = self.spool.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((self.image, spool))
    }

    fn flush_full_blocks(&mut self) -> io::Result<()> {
        let full = self.buffer.len() / BLOCK * BLOCK;
        write_without_zeros(&self.image, &self.buffer[..full], self.flushed_blocks * BLOCK_BYTES)?;
        self.buffer.drain(..full);
        self.flushed_blocks += (full / BLOCK) as u64;
        Ok(())
    }
}

/// Writes whole blocks at `offset` of a file that holds zeros there, leaving a hole where they are zero.
pub(super) fn write_without_zeros(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_zero = |at: usize| bytes[at..(at + BLOCK).min(bytes.len())] == ZEROS[..BLOCK.min(bytes.len() - at)];
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let zero = is_zero(at);
        while at < bytes.len() && is_zero(at) == zero {
            at += BLOCK;
        }
        if !zero {
            file.write_all_at(&bytes[start..at.min(bytes.len())], offset + start as u64)?;
        }
    }
    Ok(())
}
