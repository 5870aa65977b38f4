//! The merged file system of an image: names and attributes in memory, file contents only as places in the image
//! file.
//!
//! Nothing here touches the host's file system, so a symbolic link planted by one layer can lead the next one
//! nowhere but to another node of this tree.

use std::collections::{BTreeMap, VecDeque};

use crate::erofs::Content;
use crate::layer::LayerError;

/// Most nodes and entries an image may have, over all layers.
pub(crate) const MAX_NODES: usize = 1_000_000;
/// How deep directories may be nested.
pub(crate) const MAX_DEPTH: usize = 128;
/// Longest name of an entry (`NAME_MAX`).
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// Symbolic links followed on the way to one entry (`MAXSYMLINKS`).
const MAX_LINKS_FOLLOWED: usize = 40;
/// Names looked up over the whole image: bounds the time links that lead to links can cost.
const MAX_LOOKUPS: u64 = 100_000_000;
/// Names, link targets and extended attributes of the whole image.
const MAX_METADATA_BYTES: usize = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a layer, the lowest is 1; 0 made the root.
pub(crate) type LayerNumber = u32;

#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    /// Permissions with set-user-id, set-group-id and sticky bits; no file type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    /// Full names (`security.capability`), sorted.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Directory),
    File(Content),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

#[derive(Debug, Default)]
pub(crate) struct Directory {
    children: BTreeMap<Box<[u8]>, Entry>,
    /// The layer that last removed everything lower layers had put here: doing it twice changes nothing.
    cleared_by: LayerNumber,
}

/// A name in a directory. Hard links are entries with one node.
#[derive(Debug, Clone, Copy)]
struct Entry {
    node: NodeId,
    /// The layer that last wrote this name.
    layer: LayerNumber,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
}

pub(crate) struct Tree {
    nodes: Vec<Node>,
    lookups: u64,
    metadata_bytes: usize,
}

impl Tree {
    pub(crate) const ROOT: NodeId = NodeId(0);

    pub(crate) fn new() -> Self {
        let root = Node { attributes: implied_directory(), kind: Kind::Directory(Directory::default()) };
        Self { nodes: vec![root], lookups: 0, metadata_bytes: 0 }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Nodes ever made, including those no name leads to any more.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The children of a directory in byte order; nothing for other nodes.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let directory = match &self.node(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        };
        directory.into_iter().flat_map(|d| d.children.iter().map(|(name, entry)| (&**name, entry.node)))
    }

    pub(crate) fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entry(directory, name).map(|entry| entry.node)
    }

    /// Follows `path` from the root. Symbolic links, the last one included, are resolved inside the tree; `..`
    /// at the root stays there. With `create`, missing directories are made and files in the way replaced.
    pub(crate) fn directory(
        &mut self,
        path: &[&[u8]],
        create: Option<LayerNumber>,
    ) -> Result<Option<NodeId>, LayerError> {
        let mut trail = vec![Self::ROOT];
        let mut pending: VecDeque<Vec<u8>> = path.iter().map(|name| name.to_vec()).collect();
        let mut followed = 0;
        while let Some(name) = pending.pop_front() {
            self.count_lookup()?;
            let here = trail.last().copied().unwrap_or(Self::ROOT);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            match self.entry(here, &name).map(|entry| (entry.node, &self.node(entry.node).kind)) {
                Some((id, Kind::Directory(_))) => trail.push(id),
                Some((_, Kind::Symlink(target))) => {
                    followed += 1;
                    if followed > MAX_LINKS_FOLLOWED {
                        return Err(LayerError::TooManyLinks { path: show(&path.join(&b'/')) });
                    }
                    if target.first() == Some(&b'/') {
                        trail.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        pending.push_front(part.to_vec());
                    }
                }
                Some(_) | None => {
                    let Some(layer) = create else { return Ok(None) };
                    let node = Node { attributes: implied_directory(), kind: Kind::Directory(Directory::default()) };
                    trail.push(self.put(here, &name, node, layer)?);
                }
            }
            if trail.len() > MAX_DEPTH {
                return Err(LayerError::TooDeep { path: show(&path.join(&b'/')), limit: MAX_DEPTH });
            }
        }
        Ok(trail.last().copied())
    }

    /// Puts a node at `name`, in the place of whatever was there. A directory over a directory keeps the children
    /// and takes the new attributes.
    pub(crate) fn put(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: Node,
        layer: LayerNumber,
    ) -> Result<NodeId, LayerError> {
        if let (Kind::Directory(_), Some(old)) = (&node.kind, self.entry(parent, name))
            && let Kind::Directory(_) = self.node(old.node).kind
        {
            self.set_attributes(old.node, node.attributes)?;
            self.insert(parent, name, Entry { node: old.node, layer });
            return Ok(old.node);
        }
        let target = if let Kind::Symlink(target) = &node.kind { target.len() } else { 0 };
        self.count_metadata(name.len() + target + xattr_bytes(&node.attributes))?;
        if self.nodes.len() >= MAX_NODES {
            return Err(LayerError::TooManyEntries { limit: MAX_NODES });
        }
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node);
        self.insert(parent, name, Entry { node: id, layer });
        Ok(id)
    }

    /// Gives `target`, which is no directory, a second name.
    pub(crate) fn link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        target: NodeId,
        layer: LayerNumber,
    ) -> Result<(), LayerError> {
        self.count_metadata(name.len())?;
        self.insert(parent, name, Entry { node: target, layer });
        Ok(())
    }

    pub(crate) fn set_attributes(&mut self, id: NodeId, attributes: Attributes) -> Result<(), LayerError> {
        self.count_metadata(xattr_bytes(&attributes))?;
        self.nodes[id.index()].attributes = attributes;
        Ok(())
    }

    /// A whiteout: removes what layers below `layer` put at `name`, and nothing of `layer` itself.
    pub(crate) fn white_out(&mut self, parent: NodeId, name: &[u8], layer: LayerNumber) {
        let Some(entry) = self.entry(parent, name) else { return };
        if let Kind::Directory(_) = self.node(entry.node).kind {
            self.clear(entry.node, layer);
        }
        if entry.layer < layer
            && self.children(entry.node).next().is_none()
            && let Kind::Directory(directory) = &mut self.nodes[parent.index()].kind
        {
            directory.children.remove(name);
        }
    }

    /// An opaque directory: removes all that layers below `layer` put into it, at any depth.
    pub(crate) fn clear(&mut self, id: NodeId, layer: LayerNumber) {
        let Kind::Directory(directory) = &mut self.nodes[id.index()].kind else { return };
        if directory.cleared_by == layer {
            return;
        }
        directory.cleared_by = layer;
        // Taken out so that the nodes below can be changed meanwhile; depth is bounded by MAX_DEPTH.
        let mut children = std::mem::take(&mut directory.children);
        children.retain(|_, entry| {
            self.clear(entry.node, layer);
            entry.layer >= layer || self.children(entry.node).next().is_some()
        });
        if let Kind::Directory(directory) = &mut self.nodes[id.index()].kind {
            directory.children = children;
        }
    }

    fn entry(&self, directory: NodeId, name: &[u8]) -> Option<Entry> {
        match &self.node(directory).kind {
            Kind::Directory(directory) => directory.children.get(name).copied(),
            _ => None,
        }
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], entry: Entry) {
        if let Kind::Directory(directory) = &mut self.nodes[parent.index()].kind {
            directory.children.insert(name.into(), entry);
        }
    }

    fn count_lookup(&mut self) -> Result<(), LayerError> {
        self.lookups += 1;
        if self.lookups > MAX_LOOKUPS { Err(LayerError::TooManyLookups { limit: MAX_LOOKUPS }) } else { Ok(()) }
    }

    fn count_metadata(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.metadata_bytes += bytes;
        match self.metadata_bytes > MAX_METADATA_BYTES {
            true => Err(LayerError::TooMuchMetadata { limit: MAX_METADATA_BYTES }),
            false => Ok(()),
        }
    }
}

/// What a directory gets that no layer describes.
pub(crate) fn implied_directory() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

/// A path of a layer in a message: lossy, and short.
pub(crate) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

fn xattr_bytes(attributes: &Attributes) -> usize {
    attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}
