//! Files with holes: copied without filling them, and summed up as if they were not there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::pages::PAGE;

const BUFFER: usize = 1024 * 1024;

static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Where `file` has data; a file system that knows no holes says everywhere. Leaves the file at its start: QEMU reads a
/// state from where it is.
fn extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let length = file.metadata()?.len();
    let mut found = Vec::new();
    let mut end = 0;
    while end < length {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
        let start = match seek(end, Whence::SeekData) {
            Ok(start) => start.unsigned_abs(),
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        end = seek(start, Whence::SeekHole)?.unsigned_abs();
        found.push(start..end);
    }
    lseek(file, 0, Whence::SeekSet)?;
    Ok(found)
}

/// Copies what is not a hole from `from` to the same place in `to`.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    for extent in extents(from)? {
        copy_extent(from, to, extent)?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
use copy_by_hand as copy_extent;

/// By the kernel where it can, which costs nothing at all where the file system shares blocks.
#[cfg(target_os = "linux")]
fn copy_extent(from: &File, to: &File, extent: Range<u64>) -> io::Result<()> {
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let (mut read_at, mut write_at) = (signed(extent.start)?, signed(extent.start)?);
    while read_at.unsigned_abs() < extent.end {
        let left = usize::try_from(extent.end - read_at.unsigned_abs()).unwrap_or(usize::MAX);
        match nix::fcntl::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            Ok(1..) => {}
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => {
                return copy_by_hand(from, to, read_at.unsigned_abs()..extent.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, extent: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = extent.start;
    while at < extent.end {
        let count = usize::try_from(extent.end - at).unwrap_or(BUFFER).min(BUFFER);
        from.read_exact_at(&mut buffer[..count], at)?;
        to.write_all_at(&buffer[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

/// The checksum as [`vmm::SavedFile`] defines it: the CRC-32 of, for each page of 4 KiB that is not all zeros, its number
/// (64 bits, little-endian) and its bytes; a last page that is cut off is filled up with zeros.
pub(crate) fn checksum(file: &File) -> io::Result<u32> {
    let length = file.metadata()?.len();
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    // The first page that was not looked at: extents need not begin and end between pages.
    let mut next = 0;
    for extent in extents(file)? {
        let mut at = (extent.start / PAGE * PAGE).max(next);
        while at < extent.end {
            let wanted = (extent.end.next_multiple_of(PAGE) - at).min(BUFFER as u64);
            let count = usize::try_from(wanted.min(length - at)).unwrap_or(BUFFER);
            file.read_exact_at(&mut buffer[..count], at)?;
            let filled = count.next_multiple_of(PAGE as usize);
            buffer[count..filled].fill(0);
            for (page, number) in buffer[..filled].chunks_exact(PAGE as usize).zip(at / PAGE..) {
                if page != ZEROS {
                    sum.update(&number.to_le_bytes());
                    sum.update(page);
                }
            }
            at += filled as u64;
        }
        next = next.max(at);
    }
    Ok(sum.finalize())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file(bytes: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        data.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        file
    }

    #[test]
    fn a_copy_has_the_holes_and_the_sum_of_the_original() {
        let data = vec![7; 10_000];
        let original = file(64 << 20, &[(1 << 20, &data), (40 << 20, &data)]);
        let copied = file(64 << 20, &[]);
        copy(&original, &copied).unwrap();
        assert!(copied.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(checksum(&copied).unwrap(), checksum(&original).unwrap());
        let by_hand = file(64 << 20, &[]);
        extents(&original).unwrap().into_iter().for_each(|part| copy_by_hand(&original, &by_hand, part).unwrap());
        assert_eq!(checksum(&by_hand).unwrap(), checksum(&original).unwrap());
    }

    #[test]
    fn a_sum_depends_on_content_and_place_but_not_on_holes() {
        let sum = |data: &[(u64, &[u8])]| checksum(&file(20_000, data)).unwrap();
        let one = sum(&[(4096, b"x")]);
        assert_eq!(one, sum(&[(0, &[0; 4096]), (4096, b"x"), (12_288, &[0; 7000])]));
        assert_ne!(one, sum(&[(8192, b"x")]));
        assert_ne!(one, sum(&[(4096, b"y")]));
        assert_ne!(one, sum(&[(4096, b"x"), (19_999, b"x")]));
        assert_eq!(sum(&[]), 0);
    }
}
