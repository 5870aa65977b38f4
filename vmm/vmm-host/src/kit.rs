//! The kit: kernel and initramfs that every guest boots, the disk that goes with its machine, our own QEMU if it was built.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::choice::Boots;
use crate::qemu_program::QEMU;

/// Smaller than any kernel that has what a guest needs, and larger than any.
const KERNEL_BYTES: std::ops::RangeInclusive<u64> = 1024 * 1024..=512 * 1024 * 1024;

/// A kit that is complete.
#[derive(Debug)]
pub struct Kit {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The writable disk of machines that leave nothing behind; kits of tests may lack it. Not part of the identity: a
    /// template keeps a copy of its own.
    pub throwaway: Option<PathBuf>,
    /// Our own QEMU, where `make qemu` has built one. Not part of the identity: a template's key names the QEMU that made it.
    pub qemu: Option<PathBuf>,
    pub identity: KitIdentity,
    pub flavour: String,
    /// `uname -r` of its kernel.
    pub release: String,
    boots: Vec<String>,
}

/// What tells one kit from another; part of a template's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitIdentity {
    kernel_sha256: String,
    initramfs_sha256: String,
    /// Lengths as found: a kit that was half replaced has the wrong ones.
    #[serde(default)]
    lengths: (u64, u64),
}

impl KitIdentity {
    /// What is not as in `other`, in words.
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let kernel = self.kernel_sha256 != other.kernel_sha256 || self.lengths.0 != other.lengths.0;
        let initramfs = self.initramfs_sha256 != other.initramfs_sha256 || self.lengths.1 != other.lengths.1;
        [(kernel, "the guest's kernel"), (initramfs, "the guest's initramfs")]
            .into_iter()
            .filter_map(|(differs, what)| differs.then_some(what))
    }
}

#[derive(Deserialize)]
struct About {
    #[serde(flatten)]
    identity: KitIdentity,
    #[serde(default)]
    flavour: String,
    #[serde(default, rename = "kernel_release")]
    release: String,
    /// Drivers that can boot the kernel; kits older than the second driver do not say.
    #[serde(default = "qemu_only")]
    boots: Vec<String>,
    /// As made: what is found must have the same lengths.
    #[serde(default)]
    kernel_bytes: Option<u64>,
    #[serde(default)]
    initramfs_bytes: Option<u64>,
}

fn qemu_only() -> Vec<String> {
    vec!["qemu".to_owned()]
}

/// Why a kit cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    #[error("the kit has no {path}: {source}", path = path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("{path} has {found} bytes, not the {expected} it was made with", path = path.display())]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{path} has {found} bytes: no kernel is that {size}", path = path.display())]
    KernelSize { path: PathBuf, found: u64, size: &'static str },
    #[error("{path} is not what the kit was made with: its checksum is {found}, not {expected}", path = path.display())]
    Checksum { path: PathBuf, found: String, expected: String },
    #[error("{path} is no ELF image for this processor: it begins with {begins:02x?}", path = path.display())]
    NotElf { path: PathBuf, begins: Vec<u8> },
}

impl KitError {
    /// The next step for a person.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        "run `make kit`"
    }
}

impl Kit {
    /// Checks what costs no more than a look: presence, lengths, and that the kernel is one. Checksums are compared
    /// by `iii doctor`.
    ///
    /// # Errors
    /// [`KitError`] names the file.
    pub fn open(folder: &Path) -> Result<Self, KitError> {
        let length = |path: &Path| {
            fs::metadata(path)
                .map(|found| found.len())
                .map_err(|source| KitError::Missing { path: path.into(), source })
        };
        let (kernel, initramfs, about) = (folder.join("kernel"), folder.join("initramfs"), folder.join("kit.json"));
        let lengths = (length(&kernel)?, length(&initramfs)?);
        let no_kit = |source| KitError::Missing { path: about.clone(), source };
        let text = fs::read(&about).map_err(no_kit)?;
        let said: About = serde_json::from_slice(&text).map_err(|error| no_kit(error.into()))?;
        for (path, found, expected) in
            [(&kernel, lengths.0, said.kernel_bytes), (&initramfs, lengths.1, said.initramfs_bytes)]
        {
            if let Some(expected) = expected.filter(|expected| *expected != found) {
                return Err(KitError::Length { path: path.clone(), found, expected });
            }
        }
        check_kernel(&kernel, lengths.0)?;
        let identity = KitIdentity { lengths, ..said.identity };
        Ok(Self {
            kernel,
            initramfs,
            throwaway: if_there(folder, "scratch-throwaway.ext4"),
            qemu: Self::qemu_in(folder),
            identity,
            flavour: said.flavour,
            release: said.release,
            boots: said.boots,
        })
    }

    /// The kit's own QEMU, also of a kit that is not whole.
    #[must_use]
    pub fn qemu_in(folder: &Path) -> Option<PathBuf> {
        if_there(folder, QEMU)
    }

    /// Compares checksums: reads all of it, which takes longer than a restore.
    ///
    /// # Errors
    /// [`KitError::Checksum`] names the file that differs.
    pub fn verify(&self) -> Result<(), KitError> {
        let files = [(&self.kernel, &self.identity.kernel_sha256), (&self.initramfs, &self.identity.initramfs_sha256)];
        for (path, expected) in files {
            let content = fs::read(path).map_err(|source| KitError::Missing { path: path.clone(), source })?;
            let found: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            if found != *expected {
                return Err(KitError::Checksum { path: path.clone(), found, expected: expected.clone() });
            }
        }
        Ok(())
    }

    /// Which drivers can boot its kernel.
    #[must_use]
    pub fn boots(&self) -> Boots<'_> {
        let by = |driver: &str| self.boots.iter().any(|name| name == driver);
        Boots { flavour: &self.flavour, qemu: by("qemu"), libkrun: by("libkrun") }
    }
}

fn if_there(folder: &Path, name: &str) -> Option<PathBuf> {
    Some(folder.join(name)).filter(|path| path.is_file())
}

fn check_kernel(path: &Path, length: u64) -> Result<(), KitError> {
    if !KERNEL_BYTES.contains(&length) {
        let size = if length < *KERNEL_BYTES.start() { "small" } else { "large" };
        return Err(KitError::KernelSize { path: path.to_owned(), found: length, size });
    }
    let mut begins = vec![0; 20];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut begins))
        .map_err(|source| KitError::Missing { path: path.to_owned(), source })?;
    // 64 bits, little-endian; the machine's number is at 18.
    let machine = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let is_elf = begins.starts_with(b"\x7fELF\x02\x01") && begins[18..20] == u16::to_le_bytes(machine);
    // On aarch64 kernels are flat images with a magic number at 56.
    if is_elf || cfg!(target_arch = "aarch64") {
        Ok(())
    } else {
        Err(KitError::NotElf { path: path.to_owned(), begins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(about: &str, kernel_bytes: usize) -> (tempfile::TempDir, Result<Kit, KitError>) {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
        kernel.resize(kernel_bytes, 0);
        fs::write(folder.path().join("kernel"), kernel).unwrap();
        fs::write(folder.path().join("initramfs"), "i").unwrap();
        fs::write(folder.path().join("kit.json"), about).unwrap();
        let kit = Kit::open(folder.path());
        (folder, kit)
    }

    #[test]
    fn a_kit_says_who_can_boot_it() {
        let about = r#"{"kernel_sha256":"a","initramfs_sha256":"b","flavour":"iii","boots":["qemu","libkrun"]}"#;
        let (_folder, kit) = kit(about, 2 << 20);
        assert_eq!(kit.unwrap().boots(), Boots { flavour: "iii", qemu: true, libkrun: true });
    }

    #[test]
    fn a_kernel_of_another_length_than_it_was_made_with_is_refused() {
        let about = r#"{"kernel_sha256":"a","initramfs_sha256":"b","kernel_bytes":5}"#;
        let (_folder, kit) = kit(about, 2 << 20);
        assert!(matches!(kit, Err(KitError::Length { expected: 5, .. })));
    }

    #[test]
    fn a_kit_that_was_changed_has_another_checksum() {
        let about = r#"{"kernel_sha256":"a","initramfs_sha256":"b"}"#;
        let (_folder, kit) = kit(about, 2 << 20);
        assert!(matches!(kit.unwrap().verify(), Err(KitError::Checksum { expected, .. }) if expected == "a"));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let about = r#"{"kernel_sha256":"a","initramfs_sha256":"b"}"#;
        let (_folder, small) = kit(about, 1000);
        assert!(matches!(small, Err(KitError::KernelSize { size: "small", .. })));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), vec![b'x'; 2 << 20]).unwrap();
        fs::write(folder.path().join("initramfs"), "i").unwrap();
        fs::write(folder.path().join("kit.json"), about).unwrap();
        let refused = Kit::open(folder.path());
        assert!(cfg!(target_arch = "aarch64") || matches!(refused, Err(KitError::NotElf { .. })));
    }
}
