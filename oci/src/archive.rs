//! Images in a tar archive written by `docker save`: `manifest.json`, configurations and layers, in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::PullError;
use crate::manifest::{MAX_DOCUMENT_BYTES, MAX_LAYERS};
use crate::source::{LayerBlob, open};

/// Most members of an archive looked at: a handful for each layer.
const MAX_MEMBERS: usize = 100_000;
/// Links followed from one member to another.
const MAX_LINKS: usize = 4;

/// An image of an archive. It has no manifest digest; its configuration's digest names it, because the
/// configuration holds the digest of every layer.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) config: Vec<u8>,
    path: PathBuf,
    layers: Vec<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    length: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image `name` in the archive at `path`; without a name, the only one there is.
pub(crate) fn resolve(image: &str, path: &Path, name: Option<&str>) -> Result<Found, PullError> {
    let mut file = match open(path) {
        Err(PullError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let place = format!("{} (there is no such file)", path.display());
            return Err(PullError::NotFound { image: image.to_owned(), place, available: Vec::new() });
        }
        other => other?,
    };
    let members = Members::scan(&mut file, path)?;
    let raw = members.read(&mut file, path, "manifest.json")?;
    let entries: Vec<Entry> = serde_json::from_slice(&raw).map_err(|error| bad(error.to_string()))?;
    let entry = choose(image, path, &entries, name)?;
    if entry.layers.is_empty() || entry.layers.len() > MAX_LAYERS {
        return Err(bad(format!("the image has {} layers", entry.layers.len())));
    }
    let config = members.read(&mut file, path, &entry.config)?;
    let layers = entry.layers.iter().map(|layer| members.span(layer)).collect::<Result<_, _>>()?;
    Ok(Found { digest: Digest::of(&config), config, path: path.to_owned(), layers })
}

impl Found {
    pub(crate) fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|span| span.length).fold(0, u64::saturating_add)
    }

    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = Result<LayerBlob, PullError>> {
        self.layers.iter().map(|span| {
            let (path, Span { offset, length }) = (self.path.clone(), *span);
            Ok(LayerBlob { path, offset, length, is_download: false, promise: None })
        })
    }
}

fn choose<'a>(image: &str, path: &Path, entries: &'a [Entry], name: Option<&str>) -> Result<&'a Entry, PullError> {
    let tags = |entry: &'a Entry| entry.repo_tags.iter().flatten();
    let chosen = match (name, entries) {
        (None, [only]) => Some(only),
        (None, _) => None,
        // `app:1` and `1` both mean `docker.io/library/app:1`.
        (Some(name), _) => entries.iter().find(|entry| {
            tags(entry).any(|tag| {
                tag == name
                    || tag.ends_with(&format!("/{name}"))
                    || tag.rsplit_once(':').is_some_and(|(_, t)| t == name)
            })
        }),
    };
    chosen.ok_or_else(|| PullError::NotFound {
        image: image.to_owned(),
        place: path.display().to_string(),
        available: entries.iter().flat_map(tags).cloned().collect(),
    })
}

/// Where each member of the archive is.
#[derive(Default)]
struct Members {
    spans: HashMap<String, Span>,
    links: HashMap<String, String>,
}

impl Members {
    fn scan(file: &mut File, path: &Path) -> Result<Self, PullError> {
        let unreadable = |error: std::io::Error| bad(format!("{} is no tar archive: {error}", path.display()));
        let mut head = [0; 4];
        let got = file.read(&mut head).map_err(unreadable)?;
        if head[..got].starts_with(&[0x1f, 0x8b]) || head[..got].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Err(bad(format!("{} is compressed; decompress it first", path.display())));
        }
        file.rewind().map_err(unreadable)?;
        let mut archive = tar::Archive::new(file);
        let mut members = Self::default();
        // Raw: long names are not needed, and must not be read into memory.
        for (count, entry) in archive.entries_with_seek().map_err(unreadable)?.raw(true).enumerate() {
            let entry = entry.map_err(unreadable)?;
            if count > MAX_MEMBERS {
                return Err(bad(format!("{} has more than {MAX_MEMBERS} members", path.display())));
            }
            let name = clean(&String::from_utf8_lossy(&entry.header().path_bytes()), "");
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.header().link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                // A symbolic link is relative to its directory, a hard link to the archive.
                let base =
                    if kind.is_symlink() { name.rsplit_once('/').map_or("", |(directory, _)| directory) } else { "" };
                members.links.insert(name.clone(), clean(&target, base));
            } else if kind.is_file() {
                let span = Span { offset: entry.raw_file_position(), length: entry.size() };
                members.spans.insert(name, span);
            }
        }
        Ok(members)
    }

    fn span(&self, name: &str) -> Result<Span, PullError> {
        let mut at = clean(name, "");
        for _ in 0..=MAX_LINKS {
            match (self.spans.get(&at), self.links.get(&at)) {
                (Some(span), _) => return Ok(*span),
                (None, Some(target)) => at.clone_from(target),
                (None, None) => break,
            }
        }
        Err(bad(format!("member `{name}` is missing")))
    }

    fn read(&self, file: &mut File, path: &Path, name: &str) -> Result<Vec<u8>, PullError> {
        let span = self.span(name)?;
        if span.length > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("member `{name}` is larger than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let mut content = vec![0; span.length as usize];
        file.seek(SeekFrom::Start(span.offset))
            .and_then(|_| file.read_exact(&mut content))
            .map_err(|error| PullError::io("read", path, error))?;
        Ok(content)
    }
}

/// A member's name without `.` and `..`, from `base`.
fn clean(name: &str, base: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn bad(reason: String) -> PullError {
    PullError::BadManifest { what: "archive", reason }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn links_between_members_are_relative_to_their_directory() {
        assert_eq!(clean("../abc/layer.tar", "def"), "abc/layer.tar");
        assert_eq!(clean("./manifest.json", ""), "manifest.json");
        assert_eq!(clean("../../../etc/passwd", "a"), "etc/passwd");
    }
}
