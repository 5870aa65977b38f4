//! An empty copy-on-write disk: a qcow2 image of version 3 in which every cluster is still the backing file's.
//!
//! ```text
//! cluster 0  header, format and name of the backing file
//!         1  table of reference counts ─► 2
//!         2  reference counts: four clusters in use
//!         3  level-1 table, all zeros
//! ```

/// The usual size: smaller ones make the tables larger, larger ones copy more at a first write.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
const CLUSTERS: usize = 4;

const HEADER_BYTES: u32 = 104;
const MAGIC: &[u8] = b"QFI\xfb";
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Longest name of a backing file that the format allows.
pub(crate) const MAX_BACKING_NAME: usize = 1023;

/// The whole file. `backing` is a name in the same folder, `format` is QEMU's name of what it is.
///
/// Panics when the disk is empty or needs more than one cluster of level-1 table (4 TiB), or the name is too long: they
/// are constants of the caller.
pub(crate) fn empty(disk_bytes: u64, backing: &str, format: &str) -> Vec<u8> {
    // One cluster of level-2 table says where 8192 clusters are.
    let covered = (CLUSTER as u64 / 8) << CLUSTER_BITS;
    let level_1 = disk_bytes.div_ceil(covered);
    assert!((1..=CLUSTER as u64 / 8).contains(&level_1), "a disk of {disk_bytes} bytes");
    assert!(backing.len() <= MAX_BACKING_NAME && format.len() <= 16, "a short name");
    let at = |cluster: usize| (cluster * CLUSTER) as u64;

    let extension = [
        &BACKING_FORMAT.to_be_bytes()[..],
        &(format.len() as u32).to_be_bytes(),
        format.as_bytes(),
        &vec![0; format.len().next_multiple_of(8) - format.len()],
        // The end of the extensions.
        &[0; 8],
    ]
    .concat();
    let name_at = u64::from(HEADER_BYTES) + extension.len() as u64;
    let header: Vec<u8> = [
        MAGIC,
        &3u32.to_be_bytes(),
        &name_at.to_be_bytes(),
        &(backing.len() as u32).to_be_bytes(),
        &CLUSTER_BITS.to_be_bytes(),
        &disk_bytes.to_be_bytes(),
        // No encryption.
        &0u32.to_be_bytes(),
        &(level_1 as u32).to_be_bytes(),
        &at(3).to_be_bytes(),
        &at(1).to_be_bytes(),
        // Clusters of the table of reference counts; snapshots within the image, and where.
        &1u32.to_be_bytes(),
        &0u32.to_be_bytes(),
        &0u64.to_be_bytes(),
        // Incompatible, compatible and automatic features.
        &[0; 24],
        // Reference counts of 16 bits.
        &4u32.to_be_bytes(),
        &HEADER_BYTES.to_be_bytes(),
    ]
    .concat();

    let mut image = vec![0; CLUSTERS * CLUSTER];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &[header, extension, backing.as_bytes().to_vec()].concat());
    put(CLUSTER, &at(2).to_be_bytes());
    put(2 * CLUSTER, &1u16.to_be_bytes().repeat(CLUSTERS));
    image
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    const DISK: u64 = 16 << 30;

    fn number(image: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(image[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_header_says_where_everything_is() {
        let image = empty(DISK, "disk-0", "raw");
        assert_eq!((&image[..4], number(&image, 4), number(&image, 100)), (MAGIC, 3, HEADER_BYTES));
        let name = number(&image, 12) as usize;
        assert_eq!(&image[name..name + number(&image, 16) as usize], b"disk-0");
        assert_eq!(number(&image, 36), 32, "entries of the level-1 table");
        assert_eq!((number(&image, HEADER_BYTES as usize), &image[112..115]), (BACKING_FORMAT, &b"raw"[..]));
    }

    /// The format's own program is the judge.
    #[test]
    fn qemu_img_finds_nothing_wrong() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk-0")).unwrap().set_len(DISK).unwrap();
        std::fs::write(folder.path().join("disk-1.qcow2"), empty(DISK, "disk-0", "raw")).unwrap();
        std::fs::write(folder.path().join("disk-2.qcow2"), empty(DISK, "disk-1.qcow2", "qcow2")).unwrap();
        for arguments in [["check", "disk-1.qcow2"], ["check", "disk-2.qcow2"], ["info", "disk-2.qcow2"]] {
            let output = Command::new("qemu-img").args(arguments).current_dir(folder.path()).output();
            let output = output.expect("qemu-img runs; `./setup test` installs it");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
