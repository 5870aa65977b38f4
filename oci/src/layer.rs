//! Merges layers into a [`Tree`], contents straight into the image: nothing is ever extracted on the host.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType;

use crate::erofs::{Content, ContentWriter, xattr_area_bytes};
use crate::stream::LayerStream;
use crate::tarball::{Member, Segment, TarError, Tarball};
use crate::tree::{Attributes, Kind, LayerNumber, MAX_DEPTH, MAX_NAME_BYTES, MAX_NODES, Node, NodeId, Tree, show};

/// Unpacked bytes of all layers together.
const MAX_TOTAL_BYTES: u64 = 10 << 30;
/// One file.
const MAX_FILE_BYTES: u64 = 5 << 30;
/// Beyond `RATIO_APPLIES_AFTER`, unpacked bytes may be at most this many times the compressed ones.
const MAX_RATIO: u64 = 200;
const RATIO_APPLIES_AFTER: u64 = 512 << 20;
/// Longest path in an archive (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;
/// All extended attributes of one file.
const MAX_XATTR_BYTES: u64 = 64 << 10;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive is damaged.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A path that leaves the root.
    #[error("path `{path}` has a `..`")]
    PathEscapes {
        /// As the archive has it.
        path: String,
    },
    /// A path the kernel could not open.
    #[error("path `{path}` is too long, or holds a NUL")]
    PathInvalid {
        /// As the archive has it.
        path: String,
    },
    /// A hard link to nothing, or to a directory.
    #[error("hard link `{path}` points to `{target}`, which is no file of the image")]
    HardLink {
        /// The link.
        path: String,
        /// What it points to.
        target: String,
    },
    /// A symbolic link the kernel could not follow.
    #[error("symbolic link `{path}` has an empty or overlong target")]
    Symlink {
        /// The link.
        path: String,
    },
    /// Links that lead to links, or in circles.
    #[error("path `{path}` leads through too many symbolic links")]
    TooManyLinks {
        /// The path.
        path: String,
    },
    /// Directories in directories without end.
    #[error("path `{path}` is nested deeper than {limit} directories")]
    TooDeep {
        /// The path.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// More entries than any honest image has.
    #[error("the image has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// Paths that cost more time than any honest image takes.
    #[error("the image needs more than {limit} lookups to put its files in place")]
    TooManyLookups {
        /// The limit.
        limit: u64,
    },
    /// Names, link targets and attributes beyond measure.
    #[error("the image has more than {limit} bytes of names, link targets and attributes")]
    TooMuchMetadata {
        /// The limit.
        limit: usize,
    },
    /// One file's attributes beyond measure.
    #[error("`{path}` has {bytes} bytes of extended attributes; at most {limit} are taken")]
    TooManyAttributes {
        /// The file.
        path: String,
        /// What it has.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file beyond measure.
    #[error("file `{path}` has {bytes} bytes; at most {limit} are taken")]
    FileTooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// An image beyond measure.
    #[error("the image unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A decompression bomb.
    #[error("the layer unpacks to more than {limit} times its size")]
    Bomb {
        /// The limit.
        limit: u64,
    },
    /// The image file could not be written.
    #[error("the image file could not be written")]
    Write(#[source] io::Error),
    /// The caller stopped waiting.
    #[error("unpacking was given up")]
    Cancelled,
}

/// An image being merged: its tree and its contents.
pub(crate) struct Merger<'a> {
    pub(crate) tree: Tree,
    pub(crate) contents: ContentWriter,
    cancelled: &'a AtomicBool,
    layer: LayerNumber,
    entries: usize,
    /// Unpacked bytes of layers, and the holes of sparse files.
    total_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Merger<'a> {
    pub(crate) fn new(contents: ContentWriter, cancelled: &'a AtomicBool) -> Self {
        let buffer = vec![0; 128 << 10];
        Self { tree: Tree::new(), contents, cancelled, layer: 0, entries: 0, total_bytes: 0, buffer }
    }

    /// Merges the next layer on top of those before, and reads `stream` to its end.
    pub(crate) fn layer(&mut self, stream: &mut LayerStream) -> Result<(), LayerError> {
        self.layer += 1;
        let mut archive = Tarball::new(Guarded { stream, before: self.total_bytes, cancelled: self.cancelled });
        let outcome = self.members(&mut archive);
        let mut guarded = archive.into_inner();
        // Why the stream was cut short outranks what the cut looked like to the parser.
        guarded.check()?;
        outcome?;
        // The padding behind the archive belongs to the layer's digest.
        let drained = io::copy(&mut guarded, &mut io::sink());
        guarded.check()?;
        drained.map_err(TarError::from)?;
        self.total_bytes = self.total_bytes.saturating_add(stream.unpacked_bytes());
        match self.total_bytes > MAX_TOTAL_BYTES {
            true => Err(LayerError::TooLarge { limit: MAX_TOTAL_BYTES }),
            false => Ok(()),
        }
    }

    fn members(&mut self, archive: &mut Tarball<Guarded<'_>>) -> Result<(), LayerError> {
        while let Some(member) = archive.next_member()? {
            self.entries += 1;
            if self.entries > MAX_NODES {
                return Err(LayerError::TooManyEntries { limit: MAX_NODES });
            }
            self.member(member, archive)?;
        }
        Ok(())
    }

    fn member(&mut self, member: Member, archive: &mut Tarball<Guarded<'_>>) -> Result<(), LayerError> {
        let path = split_path(&member.path)?;
        let Some((name, parents)) = path.split_last() else {
            // `./` describes the root itself.
            if member.kind.is_dir() {
                let attributes = attributes(&member)?;
                self.tree.set_attributes(Tree::ROOT, attributes)?;
            }
            return Ok(());
        };
        if path.iter().any(|part| part.starts_with(AUFS)) {
            // Other names of this kind are bookkeeping of AUFS.
            if *name == OPAQUE
                && !parents.iter().any(|part| part.starts_with(AUFS))
                && let Some(directory) = self.tree.directory(parents, None)?
            {
                self.tree.clear(directory, self.layer);
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if let Some(directory) = self.tree.directory(parents, None)? {
                self.tree.white_out(directory, hidden, self.layer);
            }
            return Ok(());
        }
        let kind = match member.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // A ustar file whose name ends with `/` is a directory from before there were types.
                if member.path.ends_with(b"/") { directory() } else { Kind::File(self.content(&member, archive)?) }
            }
            EntryType::Directory => directory(),
            EntryType::Symlink => Kind::Symlink(symlink_target(&member)?),
            EntryType::Link => return self.hard_link(&member, name, parents),
            EntryType::Char => Kind::CharDevice { major: member.device.0, minor: member.device.1 },
            EntryType::Block => Kind::BlockDevice { major: member.device.0, minor: member.device.1 },
            EntryType::Fifo => Kind::Fifo,
            // Volume labels and the like are no files.
            _ => return Ok(()),
        };
        let parent = self.parent(parents)?;
        self.tree.put(parent, name, Node { attributes: attributes(&member)?, kind }, self.layer)?;
        Ok(())
    }

    fn hard_link(&mut self, member: &Member, name: &[u8], parents: &[&[u8]]) -> Result<(), LayerError> {
        let wrong = || LayerError::HardLink { path: show(&member.path), target: show(&member.link) };
        let target = split_path(&member.link)?;
        let (target_name, target_parents) = target.split_last().ok_or_else(wrong)?;
        let directory = self.tree.directory(target_parents, None)?.ok_or_else(wrong)?;
        let node = self.tree.child(directory, target_name).ok_or_else(wrong)?;
        // Directories have one name; a second name of any other node leads nowhere else.
        if let Kind::Directory(_) = self.tree.node(node).kind {
            return Err(wrong());
        }
        let parent = self.parent(parents)?;
        self.tree.link(parent, name, node, self.layer)
    }

    fn parent(&mut self, parents: &[&[u8]]) -> Result<NodeId, LayerError> {
        // With `create` there always is one.
        Ok(self.tree.directory(parents, Some(self.layer))?.unwrap_or(Tree::ROOT))
    }

    /// Moves a member's content into the image.
    fn content(&mut self, member: &Member, archive: &mut Tarball<Guarded<'_>>) -> Result<Content, LayerError> {
        if member.size > MAX_FILE_BYTES {
            let path = show(&member.path);
            return Err(LayerError::FileTooLarge { path, bytes: member.size, limit: MAX_FILE_BYTES });
        }
        let xattrs = xattr_area_bytes(&attributes(member)?.xattrs);
        self.contents.start(member.size, xattrs).map_err(LayerError::Write)?;
        let whole = [Segment { offset: 0, length: member.size }];
        let mut at = 0;
        for segment in member.segments.as_deref().unwrap_or(&whole) {
            self.hole(segment.offset - at)?;
            self.copy(segment.length, archive)?;
            at = segment.offset + segment.length;
        }
        self.hole(member.size - at)?;
        self.contents.end().map_err(LayerError::Write)
    }

    fn hole(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        if self.total_bytes > MAX_TOTAL_BYTES {
            return Err(LayerError::TooLarge { limit: MAX_TOTAL_BYTES });
        }
        self.contents.write_zeros(bytes).map_err(LayerError::Write)
    }

    fn copy(&mut self, mut bytes: u64, archive: &mut Tarball<Guarded<'_>>) -> Result<(), LayerError> {
        while bytes > 0 {
            let want = bytes.min(self.buffer.len() as u64) as usize;
            let got = archive.read(&mut self.buffer[..want])?;
            if got == 0 {
                return Err(TarError::Truncated("a file".into()).into());
            }
            self.contents.write(&self.buffer[..got]).map_err(LayerError::Write)?;
            bytes -= got as u64;
        }
        Ok(())
    }

    /// Adds what every guest needs and images may lack. Says whether the image holds a system: whether it has `/bin`.
    pub(crate) fn complete(&mut self) -> Result<bool, LayerError> {
        const MOUNT_POINTS: [&[u8]; 5] = [b"proc", b"sys", b"dev", b"run", b"workspace"];
        /// The same names as `files` in guest-init's `names.rs`: over them a guest lays its own. Those that an image lacks
        /// it would have to make first, on its disk.
        const GUEST_FILES: [&[u8]; 4] = [b"hosts", b"hostname", b"machine-id", b"resolv.conf"];
        if self.tree.child(Tree::ROOT, b"bin").is_none() {
            return Ok(false);
        }
        self.layer += 1;
        for name in MOUNT_POINTS {
            self.tree.directory(&[name], Some(self.layer))?;
        }
        if self.tree.child(Tree::ROOT, b"tmp").is_none() {
            let attributes = Attributes { mode: 0o1777, ..Attributes::default() };
            self.tree.put(Tree::ROOT, b"tmp", Node { attributes, kind: directory() }, self.layer)?;
        }
        let etc = self.parent(&[b"etc"])?;
        for name in GUEST_FILES {
            if self.tree.child(etc, name).is_some() {
                continue;
            }
            self.contents.start(0, 0).map_err(LayerError::Write)?;
            let kind = Kind::File(self.contents.end().map_err(LayerError::Write)?);
            let attributes = Attributes { mode: 0o644, ..Attributes::default() };
            self.tree.put(etc, name, Node { attributes, kind }, self.layer)?;
        }
        Ok(true)
    }
}

fn directory() -> Kind {
    Kind::Directory(crate::tree::Directory::default())
}

/// The names on the way; a leading `/` or `./` means nothing.
fn split_path(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    if path.len() > MAX_PATH_BYTES || path.contains(&0) {
        return Err(LayerError::PathInvalid { path: show(path) });
    }
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(LayerError::PathEscapes { path: show(path) });
    }
    if parts.iter().any(|part| part.len() > MAX_NAME_BYTES) {
        return Err(LayerError::PathInvalid { path: show(path) });
    }
    if parts.len() > MAX_DEPTH {
        return Err(LayerError::TooDeep { path: show(path), limit: MAX_DEPTH });
    }
    Ok(parts)
}

/// A target is kept as it is: it is followed inside the guest only.
fn symlink_target(member: &Member) -> Result<Box<[u8]>, LayerError> {
    match member.link.len() {
        1..MAX_PATH_BYTES if !member.link.contains(&0) => Ok(member.link.as_slice().into()),
        _ => Err(LayerError::Symlink { path: show(&member.path) }),
    }
}

fn attributes(member: &Member) -> Result<Attributes, LayerError> {
    // An image must not speak to the overlay its guest puts on top of it.
    let is_overlay = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let xattrs: Vec<_> =
        member.xattrs.iter().filter(|(name, _)| !is_overlay(name) && !name.contains(&0)).cloned().collect();
    let bytes = xattr_area_bytes(&xattrs);
    if bytes > MAX_XATTR_BYTES {
        return Err(LayerError::TooManyAttributes { path: show(&member.path), bytes, limit: MAX_XATTR_BYTES });
    }
    Ok(Attributes {
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        mtime_s: member.mtime_s,
        mtime_ns: member.mtime_ns,
        xattrs,
    })
}

/// A layer's stream that ends with an error where a limit is passed or the caller has gone.
struct Guarded<'a> {
    stream: &'a mut LayerStream,
    /// Unpacked bytes of the layers below.
    before: u64,
    cancelled: &'a AtomicBool,
}

impl Guarded<'_> {
    fn check(&self) -> Result<(), LayerError> {
        let unpacked = self.stream.unpacked_bytes();
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled);
        }
        if self.before.saturating_add(unpacked) > MAX_TOTAL_BYTES {
            return Err(LayerError::TooLarge { limit: MAX_TOTAL_BYTES });
        }
        if unpacked > RATIO_APPLIES_AFTER && unpacked / MAX_RATIO > self.stream.compressed_bytes() {
            return Err(LayerError::Bomb { limit: MAX_RATIO });
        }
        Ok(())
    }
}

impl Read for Guarded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check().map_err(|_| io::Error::other("the layer passed a limit"))?;
        self.stream.read(buffer)
    }
}
