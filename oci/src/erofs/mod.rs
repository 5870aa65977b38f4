//! Writes EROFS, the kernel's read-only file system, in one pass: contents first, as they arrive, metadata last.
//!
//! ```text
//! block 0        1 …                                    meta_blkaddr …                       image_bytes
//! ├ superblock ┼ full blocks of files ┼ of directories ┼ inodes + xattrs + tails of contents ┼ hole ┤
//! ```
//! A file's last, partial block (all of a small file) waits in a spool and is put behind its inode, so an image of
//! many small files has no half-empty blocks and needs one read for inode and content. Memory grows with names
//! and attributes only. Source of the format: `fs/erofs/erofs_fs.h` of Linux.
//!
//! Always true:
//! - Equal trees with equal contents at equal places give equal bytes; no clock or random number takes part.
//! - An inline tail never crosses a block, which the kernel would take for corruption.

mod content;
mod dirent;
mod inode;
mod superblock;
mod writer;

pub(crate) use content::{Content, ContentWriter};
pub(crate) use inode::xattr_area_bytes;
pub(crate) use writer::{WriteError, write};

/// Size of a block, the only one used.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// An inode's address counts slots of 32 bytes from `meta_blkaddr`.
const SLOT_BYTES: u64 = 32;

/// Every inode is of the extended kind: it alone has a modification time and 32-bit owners.
const INODE_BYTES: u64 = 64;

/// Blocks that `bytes` occupy.
fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// The number of bytes a content of `size` bytes keeps behind its inode, whose attributes take `xattr_bytes`.
fn inline_bytes(size: u64, xattr_bytes: u64) -> u64 {
    let tail = size % BLOCK_BYTES;
    if INODE_BYTES + xattr_bytes + tail <= BLOCK_BYTES { tail } else { 0 }
}
