//! Reads an EROFS image the way the kernel does: a second opinion on what the writer wrote.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) nid: u64,
    /// With the file type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) size: u64,
    /// Block of the content, or device number.
    pub(crate) location: u32,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    inline_at: Option<u64>,
}

pub(crate) struct Image {
    file: File,
    meta: u64,
    pub(crate) items: BTreeMap<String, Item>,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let superblock = at(&file, 1024, 128);
        assert_eq!(u32_at(&superblock, 0), 0xE0F5_E1E2);
        let meta = u64::from(u32_at(&superblock, 40)) * 4096;
        let root = u64::from(u16_at(&superblock, 14));
        let mut image = Self { file, meta, items: BTreeMap::new() };
        image.walk("", root, root);
        assert_eq!(
            u64::from_le_bytes(superblock[16..24].try_into().unwrap()),
            image.items.values().map(|item| item.nid).collect::<std::collections::BTreeSet<_>>().len() as u64,
            "number of inodes"
        );
        image
    }

    pub(crate) fn paths(&self) -> Vec<&str> {
        self.items.keys().map(String::as_str).filter(|path| !path.is_empty()).collect()
    }

    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8(self.content(path)).unwrap()
    }

    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        let item = self.items.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", self.paths()));
        self.content_of(item)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.items.contains_key(path)
    }

    fn content_of(&self, item: &Item) -> Vec<u8> {
        let tail = if item.inline_at.is_some() { item.size % 4096 } else { 0 };
        let mut content = at(&self.file, u64::from(item.location) * 4096, item.size - tail);
        if let Some(inline) = item.inline_at {
            assert!(inline % 4096 + tail <= 4096, "an inline tail crosses a block");
            content.extend(at(&self.file, inline, tail));
        }
        content
    }

    fn walk(&mut self, path: &str, nid: u64, parent: u64) {
        let item = self.inode(nid);
        let is_directory = item.mode & 0o170_000 == 0o040_000;
        let content = if is_directory { self.content_of(&item) } else { Vec::new() };
        self.items.insert(path.to_owned(), item);
        let mut last: Option<Vec<u8>> = None;
        for block in content.chunks(4096) {
            let count = usize::from(u16_at(block, 8)) / 12;
            for index in 0..count {
                let start = usize::from(u16_at(block, index * 12 + 8));
                let end = if index + 1 < count { usize::from(u16_at(block, index * 12 + 20)) } else { block.len() };
                let name = block[start..end].split(|byte| *byte == 0).next().unwrap().to_vec();
                assert!(last.as_ref().is_none_or(|last| *last < name), "names are sorted");
                let child = u64::from_le_bytes(block[index * 12..index * 12 + 8].try_into().unwrap());
                match name.as_slice() {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    name => {
                        let name = String::from_utf8_lossy(name).into_owned();
                        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                        self.walk(&path, child, nid);
                    }
                }
                last = Some(name);
            }
        }
    }

    fn inode(&self, nid: u64) -> Item {
        let start = self.meta + nid * 32;
        let raw = at(&self.file, start, 64);
        let format = u16_at(&raw, 0);
        assert_eq!(format & 1, 1, "extended");
        let xattr_count = u64::from(u16_at(&raw, 2));
        let xattr_bytes = if xattr_count == 0 { 0 } else { 12 + 4 * (xattr_count - 1) };
        let size = u64::from_le_bytes(raw[8..16].try_into().unwrap());
        Item {
            nid,
            mode: u16_at(&raw, 4),
            uid: u32_at(&raw, 24),
            gid: u32_at(&raw, 28),
            mtime: (i64::from_le_bytes(raw[32..40].try_into().unwrap()), u32_at(&raw, 40)),
            links: u32_at(&raw, 44),
            size,
            location: u32_at(&raw, 16),
            xattrs: self.xattrs(start + 64, xattr_bytes),
            inline_at: (format >> 1 == 2).then_some(start + 64 + xattr_bytes),
        }
    }

    fn xattrs(&self, start: u64, bytes: u64) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let raw = at(&self.file, start, bytes);
        let mut rest = raw.get(12..).unwrap_or_default();
        while !rest.is_empty() {
            let (name, value) = (usize::from(rest[0]), usize::from(u16_at(rest, 2)));
            let prefix = match rest[1] {
                1 => "user.",
                2 => "system.posix_acl_access",
                4 => "trusted.",
                6 => "security.",
                other => panic!("prefix {other}"),
            };
            let name_text = String::from_utf8_lossy(&rest[4..4 + name]);
            found.insert(format!("{prefix}{name_text}"), rest[4 + name..4 + name + value].to_vec());
            rest = &rest[(4 + name + value).next_multiple_of(4)..];
        }
        found
    }
}

fn at(file: &File, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
