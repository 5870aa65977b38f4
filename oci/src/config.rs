//! What an image says about running it: environment, command, directory and user; and its diff ids.

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::PullError;
use crate::manifest::Platform;

/// The part of an image's configuration that matters to whoever starts a process in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` lines.
    #[serde(default)]
    pub env: Vec<String>,
    /// The program run before any arguments; empty when the image names none.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the default command where there is no entry point.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Directory to start in; `None` means `/`.
    #[serde(default)]
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; `None` means root.
    #[serde(default)]
    pub user: Option<String>,
}

/// An image's configuration blob, read.
#[derive(Debug)]
pub(crate) struct ConfigBlob {
    pub(crate) image: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) platform: Option<Platform>,
}

/// The blob as it is written (OCI image configuration; Docker's differs only in fields not read here).
#[derive(Deserialize)]
struct Wire {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    config: WireConfig,
    rootfs: WireRootfs,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct WireConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "null_is_default")]
    user: String,
}

#[derive(Deserialize)]
struct WireRootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<String>,
}

impl ConfigBlob {
    pub(crate) fn parse(blob: &[u8]) -> Result<Self, PullError> {
        let bad = |reason: String| PullError::BadManifest { what: "image configuration", reason };
        let wire: Wire = serde_json::from_slice(blob).map_err(|error| bad(error.to_string()))?;
        let diff_ids = wire.rootfs.diff_ids.iter().map(|id| Digest::parse(id)).collect::<Result<_, _>>();
        let platform = wire.architecture.zip(wire.os).filter(|(architecture, _)| !architecture.is_empty()).map(
            |(architecture, os)| Platform { os, architecture, variant: wire.variant.filter(|text| !text.is_empty()) },
        );
        let stated = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            image: ImageConfig {
                env: wire.config.env,
                entrypoint: wire.config.entrypoint,
                cmd: wire.config.cmd,
                workdir: stated(wire.config.working_dir),
                user: stated(wire.config.user),
            },
            diff_ids: diff_ids.map_err(|error| bad(error.to_string()))?,
            platform,
        })
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_fields_are_defaults() {
        let id = Digest::of(b"x");
        let blob = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=1"],"Entrypoint":null,"WorkingDir":""}},
               "rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        );
        let config = ConfigBlob::parse(blob.as_bytes()).unwrap();
        assert_eq!(config.image, ImageConfig { env: vec!["A=1".into()], ..ImageConfig::default() });
        assert_eq!(config.diff_ids, [id]);
    }

    #[test]
    fn a_diff_id_that_is_no_digest_is_refused() {
        let error = ConfigBlob::parse(br#"{"rootfs":{"diff_ids":["md5:0"]}}"#).unwrap_err();
        assert!(error.to_string().contains("md5:0"), "{error}");
    }
}
