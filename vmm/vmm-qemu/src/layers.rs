//! The writable disk as layers: a raw file, and on it copy-on-write files of which only the topmost is written.
//!
//! ```text
//!        source's run directory       snapshot           child's run directory
//! top    disk-1.qcow2                                    disk-1.qcow2
//! below  scratch.ext4 ═══ hard link ═ disk-0 ═ hard link ═ disk-0
//! ```
//! Layers name the one below them relative to their own folder. Each folder holds links to all it needs, so any folder
//! can be removed without hurting another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmm::SavedDisk;

use crate::qcow2;

/// Most layers of a disk: each costs a look at its tables for what lies below.
pub(crate) const MAX_LAYERS: usize = 16;

/// The files of a disk, oldest first; there is at least one.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    files: Vec<PathBuf>,
}

fn name(number: usize) -> String {
    if number == 0 { "disk-0".to_owned() } else { format!("disk-{number}.qcow2") }
}

fn format(number: usize) -> &'static str {
    if number == 0 { "raw" } else { "qcow2" }
}

impl Layers {
    /// A disk that is one raw file.
    pub(crate) fn raw(file: &Path) -> Self {
        Self { files: vec![file.to_owned()] }
    }

    /// Links the layers of a snapshot in `folder` into `run_dir`, and puts an empty one on top.
    pub(crate) fn inherit(folder: &Path, disks: &[SavedDisk], run_dir: &Path) -> io::Result<Self> {
        let mut layers = Self { files: Vec::new() };
        for number in 0..disks.len() {
            let (from, to) = (folder.join(name(number)), run_dir.join(name(number)));
            remove_if_there(&to)?;
            fs::hard_link(from, &to)?;
            layers.files.push(to);
        }
        let top = layers.make_top(run_dir)?;
        layers.push(top);
        Ok(layers)
    }

    /// The one that is written.
    pub(crate) fn top(&self) -> &Path {
        self.files.last().expect("a disk has a layer")
    }

    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }

    /// Links all layers into `folder`; it says what they will be once nobody writes to the topmost any more.
    pub(crate) fn link_into(&self, folder: &Path) -> io::Result<()> {
        let mut numbered = self.files.iter().enumerate();
        numbered.try_for_each(|(number, file)| fs::hard_link(file, folder.join(name(number))))
    }

    /// The layers that were linked into `folder`.
    pub(crate) fn describe(&self, folder: &Path) -> io::Result<Vec<SavedDisk>> {
        let names = (0..self.files.len()).map(name);
        names.map(|name| Ok(SavedDisk { bytes: fs::metadata(folder.join(&name))?.len(), name })).collect()
    }

    /// Writes an empty layer for the place above the topmost into `folder`; [`Self::push`] puts it there.
    pub(crate) fn make_top(&self, folder: &Path) -> io::Result<PathBuf> {
        let (number, below) = (self.files.len(), self.files.len() - 1);
        let path = folder.join(name(number));
        remove_if_there(&path)?;
        let image = qcow2::empty(vmm::SCRATCH_DISK_BYTES, &name(below), format(below));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&image).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(path)
    }

    pub(crate) fn push(&mut self, top: PathBuf) {
        self.files.push(top);
    }

    /// The whole disk for QEMU, as the node `scratch`.
    pub(crate) fn node(&self, sync: bool) -> Value {
        let numbered = self.files.iter().enumerate();
        let top = self.files.len() - 1;
        numbered.fold(Value::Null, |below, (number, file)| {
            let node_name = (number == top).then_some("scratch");
            let mut node = layer(format(number), node_name, file, number != top, sync);
            if number > 0 {
                node["backing"] = below;
            }
            node
        })
    }
}

/// QEMU's name for the layer that was the `number`th to be put on top.
pub(crate) fn node_name(number: u32) -> String {
    format!("scratch-{number}")
}

/// A layer that is to be put on top of one that QEMU has already.
pub(crate) fn overlay(node_name: &str, file: &Path, sync: bool) -> Value {
    let mut node = layer("qcow2", Some(node_name), file, false, sync);
    node["backing"] = Value::Null;
    node
}

/// One image file for QEMU.
pub(crate) fn layer(format: &str, node_name: Option<&str>, file: &Path, read_only: bool, sync: bool) -> Value {
    let mut node = json!({ "driver": format });
    if let Some(name) = node_name {
        node["node-name"] = name.into();
    }
    node["read-only"] = read_only.into();
    node["discard"] = "unmap".into();
    node["cache"] = json!({ "no-flush": !sync });
    // What is thrown away has one user by construction. A lock would go with a fork, and keep others from what it no longer
    // writes.
    let locking = if sync { "auto" } else { "off" };
    node["file"] =
        json!({"driver": "file", "filename": file, "read-only": read_only, "discard": "unmap", "locking": locking});
    node
}

/// What an earlier attempt left behind.
fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts what was written to `disks` in `folder` onto the host's disk.
pub(crate) fn sync(folder: &Path, disks: &[SavedDisk]) -> io::Result<()> {
    disks.iter().try_for_each(|disk| File::open(folder.join(&disk.name))?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_all_it_needs_and_the_source_goes_on_above() {
        let folder = tempfile::tempdir().unwrap();
        let [run, saved, child] = ["run", "saved", "child"].map(|name| {
            fs::create_dir(folder.path().join(name)).unwrap();
            folder.path().join(name)
        });
        let scratch = run.join("scratch.ext4");
        fs::write(&scratch, "raw").unwrap();
        let mut source = Layers::raw(&scratch);
        source.link_into(&saved).unwrap();
        let disks = source.describe(&saved).unwrap();
        assert_eq!(disks, [SavedDisk { name: "disk-0".to_owned(), bytes: 3 }]);
        source.push(source.make_top(&run).unwrap());
        assert_eq!(source.node(false)["file"]["filename"], run.join("disk-1.qcow2").to_str().unwrap());

        let inherited = Layers::inherit(&saved, &disks, &child).unwrap();
        fs::remove_dir_all(&run).unwrap();
        fs::remove_dir_all(&saved).unwrap();
        assert_eq!(fs::read_to_string(child.join("disk-0")).unwrap(), "raw");
        let node = inherited.node(false);
        assert_eq!(
            (&node["node-name"], &node["driver"], &node["read-only"]),
            (&json!("scratch"), &json!("qcow2"), &json!(false))
        );
        let below = &node["backing"];
        assert_eq!(
            (&below["driver"], &below["read-only"], below.get("node-name")),
            (&json!("raw"), &json!(true), None)
        );
    }
}
