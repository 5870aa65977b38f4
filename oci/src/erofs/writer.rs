//! Ends an image: lays out directories and inodes behind the contents, and writes the superblock.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::content::{Content, ContentWriter, write_without_zeros};
use super::dirent::{self, Dirent};
use super::inode::{FileType, Inode, Layout, device_number, xattr_area_bytes};
use super::superblock::Superblock;
use super::{BLOCK_BYTES, INODE_BYTES, SLOT_BYTES, blocks, inline_bytes};
use crate::tree::{Kind, Node, NodeId, Tree};

/// Why an image could not be completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the image needs {needed} bytes, more than {limit}")]
    TooLarge { needed: u64, limit: u64 },
    #[error("the image file could not be written")]
    Io(#[from] io::Error),
}

/// Completes the image `contents` were written to: a file of `image_bytes` bytes, flushed to disk.
pub(crate) fn write(tree: &Tree, contents: ContentWriter, uuid: [u8; 16], image_bytes: u64) -> Result<(), WriteError> {
    let plan = Plan::new(tree, contents.next_block());
    let needed = plan.end_block * BLOCK_BYTES;
    if needed > image_bytes || plan.end_block > u64::from(u32::MAX) {
        return Err(WriteError::TooLarge { needed, limit: image_bytes });
    }
    let (image, spool) = contents.finish()?;
    image.set_len(image_bytes)?;
    punch_unreachable(tree, &plan, &image);
    plan.write_metadata(tree, &image, &spool)?;
    let superblock = Superblock {
        root_nid: plan.nid(Tree::ROOT) as u16,
        inodes: plan.order.len() as u64,
        blocks: plan.end_block as u32,
        meta_block: plan.meta_block as u32,
        uuid,
    };
    image.write_all_at(&superblock.block(), 0)?;
    image.sync_all()?;
    Ok(())
}

/// Where everything goes. Directory sizes depend on names alone, so all places are known before a byte is written.
struct Plan {
    /// Reachable nodes, parents before children; the root is first.
    order: Vec<NodeId>,
    /// By node.
    places: Vec<Place>,
    meta_block: u64,
    end_block: u64,
}

#[derive(Clone, Copy, Default)]
struct Place {
    reached: bool,
    links: u32,
    parent: u32,
    /// Offset of the inode from `meta_block`.
    offset: u64,
    /// Content of directories and links; other nodes know their own.
    size: u64,
    block: u32,
}

impl Plan {
    fn new(tree: &Tree, first_block: u64) -> Self {
        let (order, mut places) = walk(tree);
        let mut next_block = first_block;
        for id in &order {
            let node = tree.node(*id);
            let place = &mut places[id.index()];
            place.size = match &node.kind {
                Kind::Directory(_) => {
                    dirent::directory_bytes(sorted_names(tree, *id).iter().map(|(name, _)| name.len()))
                }
                Kind::Symlink(target) => target.len() as u64,
                Kind::File(_) | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => continue,
            };
            place.block = next_block as u32;
            next_block += blocks(place.size - inline_bytes(place.size, xattr_area_bytes(&node.attributes.xattrs)));
        }
        let mut packer = Packer::new();
        for id in &order {
            let (size, xattrs) = (content_bytes(tree.node(*id), &places[id.index()]), xattrs_of(tree.node(*id)));
            places[id.index()].offset = packer.place(INODE_BYTES + xattrs + inline_bytes(size, xattrs));
        }
        Self { order, places, meta_block: next_block, end_block: next_block + packer.blocks }
    }

    fn nid(&self, id: NodeId) -> u64 {
        self.places[id.index()].offset / SLOT_BYTES
    }

    /// Writes directories' blocks, then inodes in the order of their places.
    fn write_metadata(&self, tree: &Tree, image: &File, spool: &File) -> io::Result<()> {
        let mut by_offset = self.order.clone();
        by_offset.sort_unstable_by_key(|id| self.places[id.index()].offset);
        let mut window = Window::new(image, self.meta_block * BLOCK_BYTES);
        for (serial, id) in by_offset.into_iter().enumerate() {
            let node = tree.node(id);
            let place = &self.places[id.index()];
            let (content, location) = match &node.kind {
                Kind::Directory(_) => (self.directory(tree, id), place.block),
                Kind::Symlink(target) => (target.to_vec(), place.block),
                Kind::File(content) => (read_spool(spool, content)?, content.block),
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    (Vec::new(), device_number(*major, *minor))
                }
                Kind::Fifo => (Vec::new(), 0),
            };
            let size = content_bytes(node, place);
            let inline = inline_bytes(size, xattrs_of(node)) as usize;
            let (blocks, tail) = content.split_at(content.len() - inline);
            if !blocks.is_empty() {
                write_without_zeros(image, &padded(blocks), u64::from(place.block) * BLOCK_BYTES)?;
            }
            let inode = Inode {
                file_type: file_type(&node.kind),
                layout: if inline > 0 { Layout::Inline } else { Layout::Plain },
                size,
                location,
                serial: serial as u32 + 1,
                links: place.links,
                attributes: &node.attributes,
            };
            window.put(place.offset, &[&inode.encode(), tail])?;
        }
        window.flush()
    }

    fn directory(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
        let parent = self.order_parent(id);
        let names = sorted_names(tree, id);
        let entries: Vec<Dirent<'_>> = names
            .iter()
            .map(|(name, child)| {
                let child = match child {
                    Named::Child(child) => *child,
                    Named::This => id,
                    Named::Parent => parent,
                };
                let file_type = file_type(&tree.node(child).kind).dirent_type();
                Dirent { name, nid: self.nid(child), file_type }
            })
            .collect();
        dirent::encode(&entries)
    }

    fn order_parent(&self, id: NodeId) -> NodeId {
        self.order[self.places[id.index()].parent as usize]
    }
}

/// Finds all reachable nodes and counts the names that lead to each.
fn walk(tree: &Tree) -> (Vec<NodeId>, Vec<Place>) {
    let mut places = vec![Place::default(); tree.nodes().len()];
    let mut order = vec![Tree::ROOT];
    places[Tree::ROOT.index()] = Place { reached: true, links: 2, ..Place::default() };
    let mut at = 0;
    while at < order.len() {
        let directory = order[at];
        for (_, child) in tree.children(directory) {
            let is_directory = matches!(tree.node(child).kind, Kind::Directory(_));
            let place = &mut places[child.index()];
            place.links += 1;
            if !place.reached {
                place.reached = true;
                place.parent = at as u32;
                order.push(child);
            }
            if is_directory {
                // Its own `.`, and its `..` for the parent.
                place.links += 1;
                places[directory.index()].links += 1;
            }
        }
        at += 1;
    }
    (order, places)
}

#[derive(Clone, Copy)]
enum Named {
    Child(NodeId),
    This,
    Parent,
}

/// The names of a directory with `.` and `..`, which are sorted like any other.
fn sorted_names(tree: &Tree, id: NodeId) -> Vec<(&[u8], Named)> {
    let mut names: Vec<(&[u8], Named)> = vec![(b".", Named::This), (b"..", Named::Parent)];
    names.extend(tree.children(id).map(|(name, child)| (name, Named::Child(child))));
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::File(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice { .. } => FileType::CharDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
    }
}

fn xattrs_of(node: &Node) -> u64 {
    xattr_area_bytes(&node.attributes.xattrs)
}

fn content_bytes(node: &Node, place: &Place) -> u64 {
    if let Kind::File(content) = &node.kind { content.size } else { place.size }
}

fn read_spool(spool: &File, content: &Content) -> io::Result<Vec<u8>> {
    let mut tail = vec![0; usize::from(content.inline)];
    spool.read_exact_at(&mut tail, content.spooled_at)?;
    Ok(tail)
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(out.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    out
}

/// Gives disk space back that belongs to files a later layer removed. Saves space only, so failing is allowed.
fn punch_unreachable(tree: &Tree, plan: &Plan, image: &File) {
    for (node, place) in tree.nodes().iter().zip(&plan.places) {
        if let (Kind::File(content), false) = (&node.kind, place.reached) {
            let (start, length) = (u64::from(content.block) * BLOCK_BYTES, content.blocks() * BLOCK_BYTES);
            if length > 0 {
                punch_hole(image, start, length);
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn punch_hole(image: &File, start: u64, length: u64) {
    use nix::fcntl::{FallocateFlags, fallocate};

    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let _ = fallocate(image, flags, start as i64, length as i64);
}

#[cfg(not(target_os = "linux"))]
fn punch_hole(_image: &File, _start: u64, _length: u64) {}

/// Packs inodes with their tails into blocks: the fullest of a few open blocks that still has room.
struct Packer {
    /// Start of free space within the metadata area, all within one block each.
    open: Vec<u64>,
    blocks: u64,
}

impl Packer {
    const MAX_OPEN: usize = 16;

    /// The first slot stays empty: an inode number of 0 reads as "no file" to some programs.
    fn new() -> Self {
        Self { open: vec![SLOT_BYTES], blocks: 1 }
    }

    fn place(&mut self, bytes: u64) -> u64 {
        let free = |at: u64| BLOCK_BYTES - at % BLOCK_BYTES;
        let best = (0..self.open.len()).filter(|i| free(self.open[*i]) >= bytes).min_by_key(|i| free(self.open[*i]));
        let at = match best {
            Some(index) => self.open.swap_remove(index),
            None => {
                let at = self.blocks * BLOCK_BYTES;
                self.blocks += blocks(bytes);
                at
            }
        };
        let end = (at + bytes).next_multiple_of(SLOT_BYTES);
        if !end.is_multiple_of(BLOCK_BYTES) {
            self.open.push(end);
        }
        if self.open.len() > Self::MAX_OPEN
            && let Some(fullest) = (0..self.open.len()).min_by_key(|i| free(self.open[*i]))
        {
            self.open.swap_remove(fullest);
        }
        at
    }
}

/// Collects pieces that come in ascending order and writes them in large stretches.
struct Window<'a> {
    image: &'a File,
    /// Where in the file the buffer begins.
    start: u64,
    /// How far from the start of the metadata area that is.
    offset: u64,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    const BYTES: usize = 1 << 20;

    fn new(image: &'a File, start: u64) -> Self {
        Self { image, start, offset: 0, buffer: Vec::with_capacity(Self::BYTES + (128 << 10)) }
    }

    fn put(&mut self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.buffer.resize((offset - self.offset) as usize, 0);
        for piece in pieces {
            self.buffer.extend_from_slice(piece);
        }
        if self.buffer.len() >= Self::BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
