//! Turns an image reference into a verified root file system on disk.
//!
//! ```text
//! ImageRef ─ source ─┬─ registry  ┐          ┌ tarball ─ layer ─ tree ┐
//!                    ├─ layout    ├─ stream ─┤                        ├─ erofs ─ store ─► Rootfs
//!                    └─ archive   ┘ digests  └ contents ──────────────┘
//! ```
//! Contents go from the compressed layer into the EROFS file in one pass; only names and attributes are held in
//! memory, and nothing is ever extracted on the host. Knows images; knows no VM, worker or engine.
//!
//! The distribution protocol is spoken by `oci-client`. (`oci-distribution` is the former name of the same code,
//! no longer kept up: `oci-client` streams blobs, checks digests, and has the fixes for credentials sent to other
//! hosts.) TLS trusts what the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name other certificates.
//!
//! Always true:
//! - An image in the store is complete, read-only, and made of content that matched every digest on the way:
//!   manifest, configuration, layers, and layers unpacked.
//! - Paths and links of a layer resolve inside the image's own tree; no path of the host is ever looked at.
//! - Size, ratio, number, depth and time are bounded whatever an image says.
//! - A pull that fails, is dropped or is killed leaves nothing that looks like an image, and its files are removed:
//!   at once, or when the store is next used.
//! - The same image gives the same bytes.

mod archive;
mod assemble;
mod config;
mod credentials;
mod digest;
mod erofs;
mod error;
mod layer;
mod layout;
mod lock;
mod manifest;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod stream;
mod tags;
mod tarball;
mod tree;
mod workspace;

pub use config::ImageConfig;
pub use digest::{Digest, DigestError};
pub use error::{PullError, StoreError};
pub use layer::LayerError;
pub use manifest::Platform;
pub use progress::{Phase, Progress};
pub use reference::{ImageRef, RefError};
pub use registry::RegistryOptions;
pub use store::{Refresh, Rootfs, Store, StoreOptions};
pub use tarball::TarError;
