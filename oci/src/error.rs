//! Why an image could not be made ready, in words for the person who asked for it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::lock::LockError;

/// Why [`Store::ensure`](crate::Store::ensure) failed. Whatever the variant, nothing is half-installed afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The source is there, the image is not.
    #[error("image `{image}` was not found in {place}{}", list(" (it has: ", available, ")"))]
    NotFound {
        /// The reference.
        image: String,
        /// Registry, directory or archive that was asked.
        place: String,
        /// What it holds instead, where that is known.
        available: Vec<String>,
    },
    /// No connection to the registry.
    #[error("registry `{registry}` could not be reached: {reason}")]
    Unreachable {
        /// `host[:port]`.
        registry: String,
        /// What the network said.
        reason: String,
    },
    /// The registry wants other credentials, or any.
    #[error("registry `{registry}` refused access to `{image}`: {reason}")]
    Denied {
        /// `host[:port]`.
        registry: String,
        /// The reference.
        image: String,
        /// What the registry said.
        reason: String,
    },
    /// The registry answered with something else than what was asked for.
    #[error("registry `{registry}` failed to serve `{image}`: {reason}")]
    Registry {
        /// `host[:port]`.
        registry: String,
        /// The reference.
        image: String,
        /// What happened.
        reason: String,
    },
    /// The Docker configuration holds credentials that could not be used.
    #[error("credentials for `{registry}` could not be read from {}: {reason}", path.display())]
    Credentials {
        /// `host[:port]`.
        registry: String,
        /// The configuration file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A blob could not be fetched, after every attempt.
    #[error("blob {digest} could not be fetched from `{registry}` in {attempts} attempts: {reason}")]
    Download {
        /// The blob.
        digest: Digest,
        /// `host[:port]`.
        registry: String,
        /// How often it was tried.
        attempts: u32,
        /// Why the last attempt failed.
        reason: String,
    },
    /// Content does not have the digest it was promised under.
    #[error("{what} does not match its digest: expected {expected}, got {found}")]
    DigestMismatch {
        /// `manifest`, `layer 2`, `unpacked layer 2`, …
        what: String,
        /// The digest promised.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The image exists, but not for this machine.
    #[error("image `{image}` has no variant for {wanted}{}", list("; it has: ", available, ""))]
    NoPlatform {
        /// The reference.
        image: String,
        /// `linux/amd64`, …
        wanted: String,
        /// The platforms it has.
        available: Vec<String>,
    },
    /// A manifest, index or configuration that cannot be understood.
    #[error("the {what} is not usable: {reason}")]
    BadManifest {
        /// Which document.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A layer that cannot be merged.
    #[error("layer {number} of `{image}` was refused")]
    BadLayer {
        /// The reference.
        image: String,
        /// Counted from 1, the lowest.
        number: usize,
        /// Why.
        source: Box<LayerError>,
    },
    /// The merged image has no `/bin`: it is no base system, or is for something else than Linux.
    #[error("image `{image}` has no /bin: it is not an image a system can run from")]
    NoBin {
        /// The reference.
        image: String,
    },
    /// The image is larger than the disk it becomes.
    #[error("image `{image}` needs {needed} bytes, but a root disk has {limit}")]
    TooLarge {
        /// The reference.
        image: String,
        /// Bytes its file system takes.
        needed: u64,
        /// `StoreOptions::image_bytes`.
        limit: u64,
    },
    /// The disk is full.
    #[error("no space left on the disk that holds {}", path.display())]
    NoSpace {
        /// Where was written.
        path: PathBuf,
    },
    /// The host's file system failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The caller stopped waiting.
    #[error("pulling `{image}` was given up")]
    Cancelled {
        /// The reference.
        image: String,
    },
}

/// Why a store could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}", path.display())]
pub struct StoreError {
    /// `create`, `read`, …
    pub action: &'static str,
    /// What.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl PullError {
    /// A stable name of the kind of failure: callers match on it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "IMAGE_NOT_FOUND",
            Self::Unreachable { .. } => "REGISTRY_UNREACHABLE",
            Self::Denied { .. } => "REGISTRY_DENIED",
            Self::Registry { .. } => "REGISTRY_ERROR",
            Self::Credentials { .. } => "CREDENTIALS_UNREADABLE",
            Self::Download { .. } => "DOWNLOAD_FAILED",
            Self::DigestMismatch { .. } => "DIGEST_MISMATCH",
            Self::NoPlatform { .. } => "PLATFORM_NOT_AVAILABLE",
            Self::BadManifest { .. } => "MANIFEST_INVALID",
            Self::BadLayer { .. } => "LAYER_INVALID",
            Self::NoBin { .. } => "IMAGE_NOT_BOOTABLE",
            Self::TooLarge { .. } => "IMAGE_TOO_LARGE",
            Self::NoSpace { .. } => "NO_SPACE",
            Self::Io { .. } => "IO_ERROR",
            Self::Cancelled { .. } => "CANCELLED",
        }
    }

    /// The reader's next step, where we know one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { available, .. } if available.is_empty() => {
                Some("check the spelling of the reference, and that the image was pushed or built".into())
            }
            Self::Unreachable { reason, .. } if reason.contains("certificate") => {
                Some("name the file with the registry's certificate authority in SSL_CERT_FILE".into())
            }
            Self::Unreachable { registry, .. } => Some(format!(
                "check the network; for a registry without TLS, set III_INSECURE_REGISTRIES={registry}; \
                 to work without a registry, use oci:/path or docker-archive:/path.tar"
            )),
            Self::Denied { registry, .. } => Some(format!("log in with `docker login {registry}` or check the name")),
            Self::NoSpace { path } => Some(format!("free some space on the disk of {}", path.display())),
            Self::NoBin { .. } => Some("choose an image that holds a whole system, such as debian or alpine".into()),
            Self::DigestMismatch { .. } => Some("the source is damaged: push or build the image again".into()),
            Self::NotFound { .. }
            | Self::Registry { .. }
            | Self::Credentials { .. }
            | Self::Download { .. }
            | Self::NoPlatform { .. }
            | Self::BadManifest { .. }
            | Self::BadLayer { .. }
            | Self::TooLarge { .. }
            | Self::Io { .. }
            | Self::Cancelled { .. } => None,
        }
    }

    /// A failure of the host's file system; a full disk has its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

impl From<StoreError> for PullError {
    fn from(StoreError { action, path, source }: StoreError) -> Self {
        Self::io(action, &path, source)
    }
}

impl From<LockError> for PullError {
    fn from(LockError { path, source }: LockError) -> Self {
        Self::io("lock", &path, source)
    }
}

impl From<LockError> for StoreError {
    fn from(LockError { path, source }: LockError) -> Self {
        Self { action: "lock", path, source }
    }
}

fn list(before: &str, items: &[String], after: &str) -> String {
    match items {
        [] => String::new(),
        items => format!("{before}{}{after}", items.join(", ")),
    }
}
