//! Extended inodes and their inline attributes (`struct erofs_inode_extended`, `struct erofs_xattr_entry`).
//!
//! ```text
//! 0      2        4    6   8    16  20   24  28  32     40        44    48         64
//! ├format┼xattrs ┼mode┼ - ┼size┼ u ┼ ino┼ uid┼gid┼ mtime ┼ mtime_ns┼nlink┼ reserved ┤ attributes, tail
//! ```

use crate::tree::Attributes;

/// The last stretch of a content is in blocks like the rest, or behind the inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Plain,
    Inline,
}

/// File type bits of `mode`, and the type a directory entry states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileType {
    Regular,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
    Symlink,
}

impl FileType {
    pub(super) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }

    /// `EROFS_FT_*`.
    pub(super) fn dirent_type(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

pub(super) struct Inode<'a> {
    pub(super) file_type: FileType,
    pub(super) layout: Layout,
    pub(super) size: u64,
    /// First block of the content, or the device number.
    pub(super) location: u32,
    /// A serial number for programs with 32-bit inode numbers.
    pub(super) serial: u32,
    pub(super) links: u32,
    pub(super) attributes: &'a Attributes,
}

impl Inode<'_> {
    /// The inode with its attributes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let Attributes { mode, uid, gid, mtime_s, mtime_ns, xattrs } = self.attributes;
        let xattr_bytes = xattr_area_bytes(xattrs);
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
        };
        let format: u16 = 1 | layout << 1;
        let xattr_count = if xattr_bytes == 0 { 0 } else { (xattr_bytes - XATTR_HEADER) / 4 + 1 };
        let mut out = Vec::with_capacity(64 + xattr_bytes as usize);
        out.extend(format.to_le_bytes());
        out.extend((xattr_count as u16).to_le_bytes());
        out.extend((self.file_type.mode_bits() | (mode & 0o7777)).to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size.to_le_bytes());
        out.extend(self.location.to_le_bytes());
        out.extend(self.serial.to_le_bytes());
        out.extend(uid.to_le_bytes());
        out.extend(gid.to_le_bytes());
        out.extend(mtime_s.to_le_bytes());
        out.extend(mtime_ns.to_le_bytes());
        out.extend(self.links.to_le_bytes());
        out.extend([0; 16]);
        encode_xattrs(xattrs, &mut out);
        out
    }
}

/// A device number as the kernel stores it (`new_encode_dev`).
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Name filter, count of shared attributes (none), reserved.
const XATTR_HEADER: u64 = 12;
/// Length of the name, index of its prefix, length of the value.
const XATTR_ENTRY: u64 = 4;

/// Prefixes that are stored as a number.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Whether an attribute of this name and length of value has a place in the image.
pub(super) fn is_storable(name: &[u8], value: &[u8]) -> bool {
    value.len() <= usize::from(u16::MAX) && split(name).is_some_and(|(_, rest)| rest.len() <= 255)
}

/// Bytes the attributes take behind their inode: 0, or header and entries, each rounded up to 4.
pub(crate) fn xattr_area_bytes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let entries = xattrs.iter().filter(|(name, value)| is_storable(name, value)).map(|(name, value)| {
        let name = split(name).map_or(0, |(_, rest)| rest.len());
        (XATTR_ENTRY + (name + value.len()) as u64).next_multiple_of(4)
    });
    match entries.sum::<u64>() {
        0 => 0,
        bytes => XATTR_HEADER + bytes,
    }
}

fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) {
    if xattr_area_bytes(xattrs) == 0 {
        return;
    }
    out.extend([0; XATTR_HEADER as usize]);
    for (name, value) in xattrs.iter().filter(|(name, value)| is_storable(name, value)) {
        let Some((index, rest)) = split(name) else { continue };
        out.extend([rest.len() as u8, index]);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The number of the prefix and the rest of the name; `None` for name spaces the format has no number for.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // An access list is a whole name, the others are prefixes of one.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_with_a_capability_has_the_kernels_shape() {
        let xattrs = vec![(b"security.capability".to_vec(), vec![9; 20])];
        let attributes = Attributes { mode: 0o4755, uid: 70_000, gid: 5, mtime_s: -1, mtime_ns: 7, xattrs };
        let inode = Inode {
            file_type: FileType::Regular,
            layout: Layout::Inline,
            size: 5 << 32,
            location: 3,
            serial: 8,
            links: 2,
            attributes: &attributes,
        };
        let raw = inode.encode();
        assert_eq!(raw.len(), 64 + 12 + 4 + 10 + 20 + 2);
        assert_eq!(raw[..2], [5, 0], "extended, inline");
        assert_eq!(raw[2..4], [10, 0], "attributes: 36 bytes after the header, by 4, plus one");
        assert_eq!(raw[4..6], 0o104_755_u16.to_le_bytes());
        assert_eq!(raw[24..28], 70_000_u32.to_le_bytes());
        assert_eq!(raw[32..40], [0xff; 8], "before 1970");
        assert_eq!(raw[76..80], [10, 6, 20, 0], "`capability` under `security.`");
    }

    #[test]
    fn name_spaces_without_a_number_are_left_out() {
        assert_eq!(xattr_area_bytes(&[(b"nfs.x".to_vec(), vec![1])]), 0);
        assert_eq!(xattr_area_bytes(&[(b"user.".to_vec(), vec![1])]), 0);
        assert_eq!(xattr_area_bytes(&[(b"system.posix_acl_access".to_vec(), vec![1; 4])]), 20);
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(8, 0x1ff), 0x1008ff);
    }
}
