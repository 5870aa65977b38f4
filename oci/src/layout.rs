//! Images in a directory of the OCI image layout: `oci-layout`, `index.json`, `blobs/sha256/<hex>`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::PullError;
use crate::manifest::{
    Descriptor, Document, Index, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH, Manifest, Platform, bad_manifest,
};
use crate::source::{LayerBlob, Promise, open};

/// Where a descriptor's tag stands.
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image of a layout directory.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    path: PathBuf,
}

/// Finds the image `tag` of the layout at `path` for `host`; without a tag, the only one there is.
pub(crate) fn resolve(
    image: &str,
    path: &Path,
    tag: Option<&str>,
    pin: Option<&Digest>,
    host: &Platform,
) -> Result<Found, PullError> {
    let index_path = path.join("index.json");
    let raw = match read_limited(&index_path) {
        Err(PullError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let place = format!("{} (there is no {})", path.display(), index_path.display());
            return Err(PullError::NotFound { image: image.to_owned(), place, available: Vec::new() });
        }
        other => other?,
    };
    let Document::Index(index) = Document::parse(&raw)? else {
        return Err(PullError::BadManifest { what: "index.json", reason: "it is no index".into() });
    };
    let chosen = choose(image, path, &index, tag, pin)?;
    let mut platforms = chosen.platforms();
    let found = descend(path, &chosen, host, MAX_INDEX_DEPTH, &mut platforms)?;
    let (digest, manifest) = found.ok_or_else(|| {
        platforms.sort();
        platforms.dedup();
        PullError::NoPlatform { image: image.to_owned(), wanted: host.to_string(), available: platforms }
    })?;
    Ok(Found { digest, manifest, path: path.to_owned() })
}

impl Found {
    pub(crate) fn config(&self) -> Result<Vec<u8>, PullError> {
        read_blob(&self.path, &self.manifest.config, "configuration")
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = Result<LayerBlob, PullError>> {
        self.manifest.layers.iter().map(|layer| {
            let (digest, size) = layer.checked()?;
            // One byte more than promised is enough to see that the digest cannot match.
            let path = blob_path(&self.path, &digest);
            let promise = Some(Promise { digest, path: path.clone() });
            Ok(LayerBlob { path, offset: 0, length: size.saturating_add(1), is_download: false, promise })
        })
    }
}

/// The entries of `index.json` that are meant.
fn choose(
    image: &str,
    path: &Path,
    index: &Index,
    tag: Option<&str>,
    pin: Option<&Digest>,
) -> Result<Index, PullError> {
    let meant = |entry: &&Descriptor| {
        let named = entry.annotations.get(TAG).map(String::as_str);
        let tagged = match tag {
            // Some tools write the whole reference there.
            Some(tag) => named.is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, t)| t == tag)),
            None => true,
        };
        tagged && pin.is_none_or(|pin| entry.digest == pin.to_string())
    };
    let entries: Vec<Descriptor> = index.manifests.iter().filter(meant).cloned().collect();
    let names: Vec<String> = index.manifests.iter().filter_map(|entry| entry.annotations.get(TAG)).cloned().collect();
    // A pin may also name a manifest inside an index, which has no entry here.
    if let (true, Some(pin)) = (entries.is_empty(), pin)
        && let Ok(metadata) = blob_path(path, pin).metadata()
    {
        let entry = Descriptor {
            media_type: String::new(),
            digest: pin.to_string(),
            size: metadata.len() as i64,
            platform: None,
            annotations: Default::default(),
        };
        return Ok(Index { manifests: vec![entry] });
    }
    let mut distinct: Vec<&String> = names.iter().collect();
    distinct.dedup();
    if entries.is_empty() || (tag.is_none() && pin.is_none() && distinct.len() > 1) {
        let place = match (tag, entries.is_empty()) {
            (None, false) => format!("{}: it holds several images, name one of them", path.display()),
            _ => path.display().to_string(),
        };
        return Err(PullError::NotFound { image: image.to_owned(), place, available: names });
    }
    Ok(Index { manifests: entries })
}

/// Walks indexes down to the manifest for `host`.
fn descend(
    path: &Path,
    index: &Index,
    host: &Platform,
    depth: usize,
    platforms: &mut Vec<String>,
) -> Result<Option<(Digest, Manifest)>, PullError> {
    if depth == 0 {
        return Err(bad_manifest(format!("its indexes are nested deeper than {MAX_INDEX_DEPTH}")));
    }
    for entry in index.candidates(host) {
        let raw = read_blob(path, entry, "manifest")?;
        match Document::parse(&raw)? {
            Document::Manifest(manifest) => return Ok(Some((entry.checked()?.0, manifest))),
            Document::Index(inner) => {
                platforms.extend(inner.platforms());
                if let Some(found) = descend(path, &inner, host, depth - 1, platforms)? {
                    return Ok(Some(found));
                }
            }
        }
    }
    Ok(None)
}

fn read_blob(path: &Path, blob: &Descriptor, what: &str) -> Result<Vec<u8>, PullError> {
    let (digest, _) = blob.checked()?;
    let content = read_limited(&blob_path(path, &digest))?;
    let found = Digest::of(&content);
    match found == digest {
        true => Ok(content),
        false => Err(PullError::DigestMismatch { what: what.to_owned(), expected: digest, found }),
    }
}

fn blob_path(path: &Path, digest: &Digest) -> PathBuf {
    path.join("blobs/sha256").join(digest.hex())
}

fn read_limited(path: &Path) -> Result<Vec<u8>, PullError> {
    let mut content = Vec::new();
    let read = open(path)?.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut content);
    read.map_err(|error| PullError::io("read", path, error))?;
    match content.len() as u64 > MAX_DOCUMENT_BYTES {
        true => Err(bad_manifest(format!("{} is larger than {MAX_DOCUMENT_BYTES} bytes", path.display()))),
        false => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Meter;
    use crate::source;

    /// Open files of this process below `folder`.
    fn open_files(folder: &Path) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| file.starts_with(folder))).count()
    }

    #[tokio::test]
    async fn layers_that_wait_are_no_open_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        let blob = |content: &str| {
            let digest = Digest::of(content.as_bytes());
            std::fs::write(blob_path(folder.path(), &digest), content).unwrap();
            let (media_type, annotations) = (String::new(), Default::default());
            let size = content.len() as i64;
            Descriptor { media_type, digest: digest.to_string(), size, platform: None, annotations }
        };
        let manifest =
            Manifest { config: blob("{}"), layers: (0..300).map(|number| blob(&number.to_string())).collect() };
        let found = source::Found::Layout(Found { digest: Digest::of(b""), manifest, path: folder.path().to_owned() });
        let (mut layers, handing_out) = found.layers(folder.path(), Meter::default());
        handing_out.await;
        assert_eq!(layers.len(), 300);
        assert_eq!(open_files(folder.path()), 0);
        let mut read = String::new();
        let first = layers.recv().await.unwrap().unwrap();
        first.open().unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "0");
    }
}
