//! Packs init and kernel modules into a cpio archive ("newc", as the kernel's `buffer-format.rst` describes it).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What init needs before it can mount a root file system, in the order in which it is wanted.
const WANTED: [&str; 13] = [
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "erofs",
    "overlay",
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "af_packet",
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsError {
    #[error("could not read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("kernel module `{name}` is neither built in nor below {}", folder.display())]
    NoModule { name: String, folder: PathBuf },
}

pub(crate) fn build(init: &Path, modules: Option<&Path>, out: &Path) -> Result<(), InitramfsError> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.add(folder, 0o040_755, (0, 0), &[]);
    }
    archive.add("dev/console", 0o020_600, (5, 1), &[]);
    archive.add("init", 0o100_755, (0, 0), &read(init)?);
    if let Some(folder) = modules {
        let mut order = Vec::new();
        let known = Modules::read(folder)?;
        for name in WANTED {
            known.collect(name, &mut order)?;
        }
        let mut list = String::new();
        for (name, content) in &order {
            archive.add(&format!("modules/{name}.ko"), 0o100_644, (0, 0), content);
            list.push_str(&format!("{name}.ko\n"));
        }
        archive.add("modules/order", 0o100_644, (0, 0), list.as_bytes());
    }
    fs::write(out, archive.finish()).map_err(|source| InitramfsError::File { path: out.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::File { path: path.to_owned(), source })
}

/// The modules of one kernel, by name; `-` and `_` are the same in a module's name.
struct Modules {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
}

impl Modules {
    fn read(folder: &Path) -> Result<Self, InitramfsError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(next) = folders.pop() {
            let entries = fs::read_dir(&next).map_err(|source| InitramfsError::File { path: next.clone(), source })?;
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ko") {
                    files.insert(module_name(&path), path);
                }
            }
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let built_in = list.lines().map(|line| module_name(Path::new(line))).collect();
        Ok(Self { folder: folder.to_owned(), files, built_in })
    }

    /// Adds `name` behind everything it depends on.
    fn collect(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<(), InitramfsError> {
        if self.built_in.iter().any(|built_in| built_in == name) || order.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return Err(InitramfsError::NoModule { name: name.to_owned(), folder: self.folder.clone() });
        };
        let content = read(path)?;
        for dependency in dependencies(&content) {
            self.collect(&dependency, order)?;
        }
        order.push((name.to_owned(), content));
        Ok(())
    }
}

fn module_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_")
}

/// `depends=a,b` of the module's `.modinfo`, read as what they are: zero-terminated strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let value = |key: &[u8]| -> Option<String> {
        let start = module.windows(key.len()).position(|window| window == key)? + key.len();
        let end = start + module[start..].iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&module[start..end]).into_owned())
    };
    let hard = value(b"\0depends=").unwrap_or_default();
    hard.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
