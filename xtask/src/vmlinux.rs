//! Takes the ELF kernel out of a `bzImage`, so that a VM can enter it directly through its PVH note.
//!
//! Offsets are those of the Linux x86 boot protocol (`Documentation/x86/boot.rst`): `setup_sects` at 0x1f1,
//! `payload_offset` and `payload_length` at 0x248 and 0x24c, counted from the end of the setup sectors.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Far above any kernel; bounds what a damaged image can make us allocate.
const MAX_KERNEL_BYTES: usize = 512 * 1024 * 1024;

/// Type of the note that holds the PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: u32 = 18;

#[derive(Debug, thiserror::Error)]
pub(crate) enum VmlinuxError {
    #[error("could not read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is no bzImage: {what}", path.display())]
    NotBzImage { path: PathBuf, what: &'static str },
    #[error("the kernel in {} is compressed in an unknown way (starts with {magic:02x?})", path.display())]
    Compression { path: PathBuf, magic: Vec<u8> },
    #[error("could not decompress the kernel in {}", path.display())]
    Decompress { path: PathBuf, source: io::Error },
    #[error("the kernel in {} has no PVH entry point: it was built without CONFIG_PVH", path.display())]
    NoPvh { path: PathBuf },
}

pub(crate) fn extract(from: &Path, out: &Path) -> Result<(), VmlinuxError> {
    let image = fs::read(from).map_err(|source| VmlinuxError::File { path: from.to_owned(), source })?;
    let payload = payload(&image).map_err(|what| VmlinuxError::NotBzImage { path: from.to_owned(), what })?;
    let kernel = match payload {
        [0x1f, 0x8b, ..] => read_all(flate2::read::GzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(payload).and_then(read_all),
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4_legacy(rest),
        other => {
            let magic = other.iter().take(4).copied().collect();
            return Err(VmlinuxError::Compression { path: from.to_owned(), magic });
        }
    }
    .map_err(|source| VmlinuxError::Decompress { path: from.to_owned(), source })?;
    if !has_pvh_note(&kernel) {
        return Err(VmlinuxError::NoPvh { path: from.to_owned() });
    }
    fs::write(out, kernel).map_err(|source| VmlinuxError::File { path: out.to_owned(), source })
}

fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it has no setup header");
    }
    let word = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]) as usize;
    if image.len() < 0x250 {
        return Err("it ends within the setup header");
    }
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248);
    image.get(start..start.saturating_add(word(0x24c))).ok_or("its payload lies outside of the file")
}

fn read_all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    reader.take(MAX_KERNEL_BYTES as u64).read_to_end(&mut kernel)?;
    Ok(kernel)
}

/// The frame format of `lz4 -l`: blocks of at most 8 MiB, each behind its length. What follows the last block is
/// the size of the kernel, which the build appends.
fn lz4_legacy(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK_BYTES: usize = 8 * 1024 * 1024;
    let mut kernel = Vec::new();
    while rest.len() > 4 && kernel.len() < MAX_KERNEL_BYTES {
        let length = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let Some(block) = rest.get(4..4 + length) else { break };
        let mut plain = vec![0; BLOCK_BYTES];
        let written = lz4_flex::block::decompress_into(block, &mut plain).map_err(io::Error::other)?;
        kernel.extend_from_slice(&plain[..written]);
        rest = &rest[4 + length..];
    }
    Ok(kernel)
}

/// Whether an ELF64 file has a program header of type NOTE that holds a PVH entry point.
fn has_pvh_note(kernel: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let raw = kernel.get(at..at.checked_add(bytes)?)?;
        raw.iter().rev().try_fold(0usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    if !kernel.starts_with(b"\x7fELF\x02") {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).filter_map(|index| table.checked_add(index.checked_mul(size)?)).any(|header| {
        const NOTE: usize = 4;
        if number(header, 4) != Some(NOTE) {
            return false;
        }
        let (Some(mut at), Some(length)) = (number(header + 8, 8), number(header + 32, 8)) else { return false };
        let end = at.saturating_add(length).min(kernel.len());
        while at + 12 <= end {
            let (Some(name), Some(body), Some(kind)) = (number(at, 4), number(at + 4, 4), number(at + 8, 4)) else {
                return false;
            };
            if kind == PVH_NOTE as usize {
                return true;
            }
            at += 12 + name.next_multiple_of(4) + body.next_multiple_of(4);
        }
        false
    })
}
