//! The superblock: 128 bytes, little-endian, at byte 1024 of the image (`struct erofs_super_block`).

use super::BLOCK_BYTES;

const OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// The block from the superblock on has a CRC32C; modification times are true ones.
const COMPATIBLE_FEATURES: u32 = 0x1 | 0x2;
const BLOCK_BITS: u8 = BLOCK_BYTES.trailing_zeros() as u8;

pub(super) struct Superblock {
    /// Address of the root inode; the field has 16 bits.
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The whole of block 0.
    pub(super) fn block(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(128);
        fields.extend(MAGIC.to_le_bytes());
        fields.extend(0_u32.to_le_bytes()); // checksum, computed with zeros in its place
        fields.extend(COMPATIBLE_FEATURES.to_le_bytes());
        fields.extend([BLOCK_BITS, 0]); // no extension slots
        fields.extend(self.root_nid.to_le_bytes());
        fields.extend(self.inodes.to_le_bytes());
        fields.extend([0; 12]); // build time: images are reproducible
        fields.extend(self.blocks.to_le_bytes());
        fields.extend(self.meta_block.to_le_bytes());
        fields.extend(0_u32.to_le_bytes()); // shared attributes: none
        fields.extend(self.uuid);
        // The rest stays zero: no volume name, no incompatible features, one device, no compression.
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[OFFSET..OFFSET + fields.len()].copy_from_slice(&fields);
        let checksum = crc32c(&block[OFFSET..]);
        block[OFFSET + 4..OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC32C as the kernel's `crc32c(~0, …)` gives it: without the final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn fields_stand_where_the_kernel_reads_them() {
        let block = Superblock { root_nid: 1, inodes: 7, blocks: 9, meta_block: 5, uuid: [3; 16] }.block();
        assert_eq!(block.len(), 4096);
        assert_eq!(block[1024..1028], [0xe2, 0xe1, 0xf5, 0xe0]);
        assert_eq!(block[1024 + 12], 12, "block bits");
        assert_eq!(block[1024 + 14], 1, "root");
        assert_eq!(block[1024 + 16], 7, "inodes");
        assert_eq!(block[1024 + 36], 9, "blocks");
        assert_eq!(block[1024 + 40], 5, "metadata");
        assert_eq!(block[1024 + 48..1024 + 64], [3; 16], "uuid");
    }
}
