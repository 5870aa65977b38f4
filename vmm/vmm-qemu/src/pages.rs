//! Where a guest's memory lies in QEMU's address space, and which pages of it are QEMU's own: read from what the kernel
//! tells in `/proc/<pid>/maps` and `/proc/<pid>/pagemap`.

pub(crate) const PAGE: u64 = 4096;

/// Of an entry of `pagemap`: the page is in memory, swapped out, or the page of a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// A part of QEMU's address space that is a part of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) address: u64,
    /// In the guest's memory, and so in its file.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// One line of `maps`.
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
    /// Private, and may be written.
    ours: bool,
    nameless: bool,
}

fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let permissions = fields.next()?;
    let offset = hex(fields.next()?)?;
    let _device = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let nameless = fields.next().is_none();
    let ours = permissions.starts_with("rw") && permissions.ends_with('p');
    Some(Mapping { start: hex(start)?, end: hex(end)?, offset, inode, ours, nameless })
}

/// The private mapping of the file `inode`, in however many parts; `None` unless they are the guest's memory, each byte
/// once. The device is not compared: some file systems show another one here than elsewhere.
pub(crate) fn of_file(maps: &str, inode: u64, memory_bytes: u64) -> Option<Vec<Stretch>> {
    let ours = maps.lines().filter_map(parse).filter(|mapping| mapping.ours && mapping.inode == inode);
    let mut stretches: Vec<Stretch> =
        ours.map(|at| Stretch { address: at.start, offset: at.offset, bytes: at.end - at.start }).collect();
    stretches.sort_by_key(|stretch| stretch.offset);
    let end = stretches.iter().try_fold(0, |end, next| (next.offset == end).then(|| end + next.bytes));
    (end == Some(memory_bytes)).then_some(stretches)
}

/// The one run of adjacent nameless mappings that is as long as the guest's memory. QEMU marks guest memory (mergeable,
/// not for core dumps), so the kernel never joins it with what lies beside it.
pub(crate) fn nameless(maps: &str, memory_bytes: u64) -> Option<Vec<Stretch>> {
    let all: Vec<Mapping> =
        maps.lines().filter_map(parse).filter(|at| at.ours && at.nameless && at.inode == 0).collect();
    let from = |first: usize| -> Option<Vec<Stretch>> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut offset = 0;
        for at in &all[first..] {
            let adjacent = stretches.last().is_none_or(|last| last.address + last.bytes == at.start);
            if !adjacent || offset >= memory_bytes {
                break;
            }
            stretches.push(Stretch { address: at.start, offset, bytes: at.end - at.start });
            offset += at.end - at.start;
        }
        (offset == memory_bytes).then_some(stretches)
    };
    let mut found = (0..all.len()).filter_map(from);
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

/// Appends to `runs` what of `entries`, the `pagemap` of the pages from `first` on, is QEMU's own. Neighbours are joined.
pub(crate) fn private(entries: &[u64], first: Stretch, runs: &mut Vec<Stretch>) {
    for (entry, number) in entries.iter().zip(0u64..) {
        if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
            continue;
        }
        let (address, offset) = (first.address + number * PAGE, first.offset + number * PAGE);
        match runs.last_mut() {
            Some(last) if last.address + last.bytes == address && last.offset + last.bytes == offset => {
                last.bytes += PAGE;
            }
            _ => runs.push(Stretch { address, offset, bytes: PAGE }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a000-55d0b000 rw-p 00001000 fe:00 77    /usr/bin/qemu
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
7f0000004000-7f0000008000 rw-p 00000000 fe:00 9   /t/memory (deleted)
7f0000008000-7f000000a000 rw-p 00004000 fe:00 9   /t/me mory (deleted)
7f000000a000-7f000000b000 r--p 00006000 fe:00 9   /t/memory
7f0000010000-7f0000014000 rw-p 00000000 00:00 0
7f0000014000-7f0000016000 rw-p 00000000 00:00 0
7f0000020000-7f0000022000 rw-p 00000000 00:00 0   [heap]
not a line
";

    fn stretch(address: u64, offset: u64, bytes: u64) -> Stretch {
        Stretch { address, offset, bytes }
    }

    #[test]
    fn a_mapping_in_parts_is_found_by_its_file() {
        let expected = [stretch(0x7f00_0000_4000, 0, 0x4000), stretch(0x7f00_0000_8000, 0x4000, 0x2000)];
        assert_eq!(of_file(MAPS, 9, 0x6000).unwrap(), expected);
        assert_eq!(of_file(MAPS, 9, 0x8000), None, "not all of the memory");
        assert_eq!(of_file(MAPS, 8, 0x6000), None);
    }

    #[test]
    fn anonymous_memory_is_found_by_its_size_if_there_is_one_such() {
        let expected = [stretch(0x7f00_0001_0000, 0, 0x4000), stretch(0x7f00_0001_4000, 0x4000, 0x2000)];
        assert_eq!(nameless(MAPS, 0x6000).unwrap(), expected);
        assert_eq!(nameless(MAPS, 0x4000).unwrap().len(), 1);
        assert_eq!(nameless(MAPS, 0x2000), None, "there are two");
        assert_eq!(nameless(MAPS, 0x10_0000), None);
    }

    #[test]
    fn pages_that_are_qemus_own_are_joined_and_those_of_the_file_are_not_among_them() {
        let entries = [PRESENT, SWAPPED, PRESENT | OF_FILE, 0, PRESENT];
        let mut runs = Vec::new();
        private(&entries, stretch(0x10_000, 0, 0), &mut runs);
        private(&[PRESENT], stretch(0x15_000, 0x5000, 0), &mut runs);
        assert_eq!(runs, [stretch(0x10_000, 0, 0x2000), stretch(0x14_000, 0x4000, 0x2000)]);
    }
}
