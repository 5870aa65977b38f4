//! Directory blocks (`struct erofs_dirent`): entries first, then their names; sorted within and across blocks, as
//! the kernel searches them by halves.
//!
//! ```text
//! 0      8        10     11  12
//! ├ nid ┼ nameoff┼ type ┼ - ┤ × n, then n names; the last one of a block ends at a NUL or at the end
//! ```

use super::BLOCK_BYTES;

const DIRENT_BYTES: usize = 12;
const BLOCK: usize = BLOCK_BYTES as usize;

/// One name of a directory.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// The size a directory will have, from the lengths of its names in order.
pub(super) fn directory_bytes(name_lengths: impl Iterator<Item = usize>) -> u64 {
    let (full, used) = name_lengths.fold((0, 0), |(full, used), length| {
        let need = DIRENT_BYTES + length;
        if used + need > BLOCK { (full + 1, need) } else { (full, used + need) }
    });
    full * BLOCK_BYTES + used as u64
}

/// The content of a directory with these entries, which are sorted by name.
pub(super) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT_BYTES + entry.name.len();
                used <= BLOCK
            })
            .count();
        let (now, later) = rest.split_at(count);
        encode_block(now, &mut out);
        rest = later;
    }
    out
}

fn encode_block(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        out.extend((name_offset as u16).to_le_bytes());
        out.extend([entry.file_type, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_known_before_the_entries_are() {
        for count in [1, 2, 15, 16, 17, 100, 341, 342, 1000] {
            let names: Vec<String> = (0..count).map(|i| format!("{i:0width$}", width = 1 + i % 255)).collect();
            let entries: Vec<Dirent<'_>> =
                names.iter().map(|name| Dirent { name: name.as_bytes(), nid: 1, file_type: 1 }).collect();
            assert_eq!(encode(&entries).len() as u64, directory_bytes(names.iter().map(String::len)), "{count}");
        }
    }
}
