//! Crafted images for tests, and the stores they are made ready in.

#![allow(dead_code, reason = "each test program uses its part of this module")]

pub(crate) mod reader;

use std::io::Write;
use std::path::{Path, PathBuf};

use oci::{Digest, ImageRef, PullError, Refresh, RegistryOptions, Rootfs, Store, StoreOptions};
use tar::{EntryType, Header};

pub(crate) const IMAGE_BYTES: u64 = 8 << 30;

/// A layer being written: a tar archive in memory.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// What every image needs: `/bin`.
    pub(crate) fn base() -> Self {
        Self::new().dir("bin", 0o755).file("bin/sh", "#!")
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, "", b"")
    }

    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, 0o644, "", content.as_ref())
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, target, b"")
    }

    pub(crate) fn entry(self, path: &str, kind: EntryType, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000);
        self.header(header, path, kind, link, content)
    }

    /// Writes names as they are given, which the tar crate refuses to do for bad ones.
    pub(crate) fn header(
        mut self,
        mut header: Header,
        path: &str,
        kind: EntryType,
        link: &str,
        content: &[u8],
    ) -> Self {
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        for (long, text) in [(EntryType::GNULongName, path), (EntryType::GNULongLink, link)] {
            if text.len() > 100 {
                let mut extension = Header::new_gnu();
                extension.set_entry_type(long);
                extension.set_size(text.len() as u64 + 1);
                extension.set_cksum();
                self.0.append(&extension, &[text.as_bytes(), b"\0"].concat()[..]).unwrap();
            }
        }
        let old = header.as_old_mut();
        old.name[..path.len().min(100)].copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
        old.linkname[..link.len().min(100)].copy_from_slice(&link.as_bytes()[..link.len().min(100)]);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Pax records for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..6).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
            write!(body, "{} {key}=", length.unwrap()).unwrap();
            body.extend(*value);
            body.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.0.append(&header, &body[..]).unwrap();
        self
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn pack(self, tar: &[u8]) -> (Vec<u8>, &'static str) {
        match self {
            Self::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                (encoder.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            Self::Zstd => (zstd::encode_all(tar, 3).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd"),
        }
    }
}

/// An index's entry: digest, tag, operating system and architecture.
pub(crate) type Entry<'a> = (&'a Digest, Option<&'a str>, Option<(&'a str, &'a str)>);

/// A layout directory with one image, and a store beside it.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn image(&self) -> ImageRef {
        ImageRef::parse(&format!("oci:{}", self.layout().display())).unwrap()
    }

    pub(crate) fn store(&self) -> Store {
        let options = StoreOptions { image_bytes: IMAGE_BYTES, registry: RegistryOptions::default() };
        Store::open(&self.store_dir(), options).unwrap()
    }

    pub(crate) fn blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let blobs = self.layout().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        digest
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.layout().join("blobs/sha256").join(digest.hex())
    }

    /// Writes a manifest of these layers, and an index that names only it.
    pub(crate) fn write(&self, layers: Vec<Layer>, packing: Packing) -> Manifest {
        let tars: Vec<Vec<u8>> = layers.into_iter().map(Layer::tar).collect();
        let packed: Vec<_> = tars.iter().map(|tar| packing.pack(tar)).collect();
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
        self.write_packed(&packed, &diff_ids)
    }

    pub(crate) fn write_packed(&self, layers: &[(Vec<u8>, &'static str)], diff_ids: &[Digest]) -> Manifest {
        let manifest = self.write_manifest(layers, diff_ids);
        self.write_index(&[(&manifest.digest, None, None)]);
        manifest
    }

    pub(crate) fn write_manifest(&self, layers: &[(Vec<u8>, &'static str)], diff_ids: &[Digest]) -> Manifest {
        let ids: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        let config = serde_json::json!({
            "architecture": oci::Platform::host().architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "User": "1000:1000"},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = config.to_string();
        let blobs: Vec<(Digest, usize, &str)> =
            layers.iter().map(|(content, media)| (self.blob(content), content.len(), *media)).collect();
        let describe = |digest: &Digest, size: usize, media: &str| serde_json::json!({"mediaType": media, "digest": digest.to_string(), "size": size});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(&self.blob(config.as_bytes()), config.len(), "application/vnd.oci.image.config.v1+json"),
            "layers": blobs.iter().map(|(digest, size, media)| describe(digest, *size, media)).collect::<Vec<_>>(),
        });
        let digest = self.blob(manifest.to_string().as_bytes());
        Manifest { digest, layers: blobs.into_iter().map(|(digest, ..)| digest).collect() }
    }

    pub(crate) fn write_index(&self, entries: &[Entry<'_>]) {
        std::fs::write(self.layout().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(self.layout().join("index.json"), self.index(entries)).unwrap();
    }

    pub(crate) fn index(&self, entries: &[Entry<'_>]) -> String {
        let entries: Vec<serde_json::Value> = entries
            .iter()
            .map(|(digest, tag, platform)| {
                let size = std::fs::metadata(self.blob_path(digest)).map_or(0, |metadata| metadata.len());
                let mut entry = serde_json::json!({"digest": digest.to_string(), "size": size,
                    "mediaType": "application/vnd.oci.image.manifest.v1+json"});
                if let Some(tag) = tag {
                    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
                }
                if let Some((os, architecture)) = platform {
                    entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                }
                entry
            })
            .collect();
        serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string()
    }

    pub(crate) async fn ready(&self) -> Result<Rootfs, PullError> {
        self.store().ensure(&self.image(), Refresh::Always, &|_| ()).await
    }

    /// No work in progress is left, and no image.
    pub(crate) fn assert_nothing_left(&self) {
        for part in ["sha256", "tmp"] {
            let left: Vec<_> = std::fs::read_dir(self.store_dir().join(part)).unwrap().flatten().collect();
            assert!(left.is_empty(), "{part} holds {left:?}");
        }
    }
}

pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) layers: Vec<Digest>,
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Where a program is, looking also where only root usually does.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(more).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed (./setup test)"))
}

/// Says what was not tested and why, also where a passing test's words are not shown.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// Has the file system's own checker look at an image.
pub(crate) fn fsck(image: &Path) {
    let checked = std::process::Command::new(program("fsck.erofs")).arg("--extract").arg(image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
