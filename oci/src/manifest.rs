//! Manifests and indexes, and the choice of the variant that runs on this machine.

use std::fmt;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::PullError;

/// Largest manifest, index or configuration read.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most layers an image may have.
pub(crate) const MAX_LAYERS: usize = 512;
/// How deep an index may hold indexes.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;

/// What a manifest says about one blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// The manifest of one image for one platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// A list of manifests, one for each platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a manifest's digest may turn out to name.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// An operating system and a processor, in Go's names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`, …
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, …
    pub variant: Option<String>,
}

impl Platform {
    /// What guests on this machine run.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `self` runs here; variants are revisions of one architecture, of which the 64-bit
    /// ones have a single common one.
    pub(crate) fn runs_on(&self, host: &Self) -> bool {
        self.os == host.os && self.architecture == host.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl Document {
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, PullError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<i64>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let bad = |error: serde_json::Error| bad_manifest(error.to_string());
        let shape: Shape = serde_json::from_slice(raw).map_err(bad)?;
        if shape.schema_version != Some(2) {
            return Err(bad_manifest(format!("its schema version is {:?}, not 2", shape.schema_version)));
        }
        match (shape.manifests, shape.layers) {
            (Some(_), None) => serde_json::from_slice(raw).map(Self::Index).map_err(bad),
            (None, Some(_)) => {
                let manifest: Manifest = serde_json::from_slice(raw).map_err(bad)?;
                manifest.check()?;
                Ok(Self::Manifest(manifest))
            }
            // Both at once would be read one way by some programs and the other way by others.
            (Some(_), Some(_)) => Err(bad_manifest("it has both `layers` and `manifests`".into())),
            (None, None) => Err(bad_manifest("it has neither `layers` nor `manifests`".into())),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), PullError> {
        if self.layers.is_empty() {
            return Err(bad_manifest("it has no layers".into()));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(bad_manifest(format!("it has {} layers; at most {MAX_LAYERS} are taken", self.layers.len())));
        }
        self.layers.iter().chain([&self.config]).try_for_each(|blob| blob.checked().map(drop))?;
        match self.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            Some(layer) => Err(bad_manifest(format!("layer type `{}` is not supported", layer.media_type))),
            None => Ok(()),
        }
    }

    /// Compressed bytes of all layers.
    pub(crate) fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size.max(0) as u64).fold(0, u64::saturating_add)
    }
}

impl Descriptor {
    pub(crate) fn checked(&self) -> Result<(Digest, u64), PullError> {
        let digest = Digest::parse(&self.digest).map_err(|error| bad_manifest(error.to_string()))?;
        let size =
            u64::try_from(self.size).map_err(|_| bad_manifest(format!("blob {digest} has the size {}", self.size)))?;
        Ok((digest, size))
    }
}

impl Index {
    /// The entries to try, best first: those that say they run here, then those that do not say at all.
    pub(crate) fn candidates(&self, host: &Platform) -> Vec<&Descriptor> {
        let exact = self.manifests.iter().filter(|entry| entry.platform.as_ref().is_some_and(|p| p.runs_on(host)));
        let silent = self.manifests.iter().filter(|entry| entry.platform.is_none());
        exact.chain(silent).collect()
    }

    /// The platforms an index offers, for the message when none fits.
    pub(crate) fn platforms(&self) -> Vec<String> {
        let known = self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
        // Attestations are listed under `unknown/unknown`.
        known.filter(|platform| platform.os != "unknown").map(Platform::to_string).collect()
    }
}

/// Layers are told apart by their first bytes, not by their type; the type only has to be one of tar.
fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

pub(crate) fn bad_manifest(reason: String) -> PullError {
    PullError::BadManifest { what: "manifest", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(raw: &str) -> String {
        Document::parse(raw.as_bytes()).expect_err(raw).to_string()
    }

    #[test]
    fn documents_that_could_be_read_two_ways_are_refused() {
        assert!(refusal(r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#).contains("both"));
        assert!(refusal(r#"{"schemaVersion":1,"layers":[]}"#).contains("schema version"));
        assert!(refusal(r#"{"schemaVersion":2}"#).contains("neither"));
        assert!(refusal("[]").contains("not usable"));
    }

    #[test]
    fn blobs_need_sha256_and_layers_must_be_tar() {
        let blob = |media: &str, digest: &str| format!(r#"{{"mediaType":"{media}","digest":"{digest}","size":1}}"#);
        let good = Digest::of(b"").to_string();
        let manifest =
            |layer: String| format!(r#"{{"schemaVersion":2,"config":{},"layers":[{layer}]}}"#, blob("", &good));
        let tar = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert!(Document::parse(manifest(blob(tar, &good)).as_bytes()).is_ok());
        assert!(refusal(&manifest(blob("application/vnd.in-toto+json", &good))).contains("in-toto"));
        assert!(refusal(&manifest(blob(tar, "sha512:12"))).contains("sha512:12"));
    }

    #[test]
    fn the_hosts_platform_comes_first_and_attestations_are_not_offered() {
        let entry = |os: &str, architecture: &str| {
            format!(r#"{{"digest":"d","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#)
        };
        let entries = [entry("linux", "s390x"), entry("unknown", "unknown"), entry("linux", "amd64")].join(",");
        let raw = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
        let Ok(Document::Index(index)) = Document::parse(raw.as_bytes()) else { panic!("an index") };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(index.candidates(&host).len(), 1);
        assert_eq!(index.platforms(), ["linux/s390x", "linux/amd64"]);
    }
}
