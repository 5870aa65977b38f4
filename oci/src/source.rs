//! The three sources of images behind one shape: find the manifest, then hand out configuration and layers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tokio::sync::mpsc;

use crate::archive;
use crate::config::ConfigBlob;
use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::layout;
use crate::manifest::{MAX_LAYERS, Platform, bad_manifest};
use crate::progress::Meter;
use crate::reference::{ImageRef, Source};
use crate::registry::{self, RegistryOptions};

/// An image that was found; its digest names it, and nothing large was read yet.
pub(crate) enum Found {
    Registry(Box<registry::Found>),
    Layout(layout::Found),
    Archive(archive::Found),
}

/// Where one layer's bytes are, as they are stored at the source. Opened when it is merged: hundreds may wait, and each
/// open file would be a descriptor.
pub(crate) struct LayerBlob {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    /// Read at most.
    pub(crate) length: u64,
    /// Whether the file is ours, and nobody else's from when it is opened.
    pub(crate) is_download: bool,
    /// What its bytes must hash to; `None` where the source promises nothing, or was checked already.
    pub(crate) promise: Option<Promise>,
}

impl LayerBlob {
    /// Starts to read. A download is removed: its space is free again as soon as it was merged.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>, PullError> {
        let mut file = open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(|error| PullError::io("read", &self.path, error))?;
        if self.is_download {
            fs::remove_file(&self.path).map_err(|error| PullError::io("remove", &self.path, error))?;
        }
        Ok(Box::new(file.take(self.length)))
    }
}

/// The digest of a file that nobody has checked yet.
pub(crate) struct Promise {
    pub(crate) digest: Digest,
    pub(crate) path: PathBuf,
}

impl Promise {
    pub(crate) fn check(self, number: usize, found: Digest) -> Result<(), PullError> {
        match found == self.digest {
            true => Ok(()),
            false => Err(PullError::DigestMismatch { what: format!("layer {number}"), expected: self.digest, found }),
        }
    }

    /// Reads the whole file for its digest.
    pub(crate) fn recheck(self, number: usize) -> Result<(), PullError> {
        let unreadable = |error| PullError::io("read", &self.path, error);
        let (mut file, mut hasher, mut buffer) = (open(&self.path)?, Hasher::default(), vec![0; 64 << 10]);
        loop {
            match file.read(&mut buffer).map_err(unreadable)? {
                0 => break,
                got => hasher.update(&buffer[..got]),
            }
        }
        self.check(number, hasher.finish())
    }
}

/// Layers in order, lowest first; an error ends them.
pub(crate) type Layers = mpsc::Receiver<Result<LayerBlob, PullError>>;

impl Found {
    /// Asks the source. Blocking work for local sources is small and done on a blocking thread.
    pub(crate) async fn resolve(image: &ImageRef, registry: &RegistryOptions) -> Result<Self, PullError> {
        let host = Platform::host();
        let shown = image.to_string();
        match image.source().clone() {
            Source::Registry(reference) => registry::resolve(&reference, &shown, registry, &host)
                .await
                .map(|found| Self::Registry(Box::new(found))),
            Source::Layout { path, tag, pin } => {
                blocking(&shown.clone(), move || layout::resolve(&shown, &path, tag.as_deref(), pin.as_ref(), &host))
                    .await
                    .map(Self::Layout)
            }
            Source::Archive { path, tag } => {
                blocking(&shown.clone(), move || archive::resolve(&shown, &path, tag.as_deref()))
                    .await
                    .map(Self::Archive)
            }
        }
    }

    /// Names the image for ever: the manifest's digest, or the configuration's where there is no manifest.
    pub(crate) fn digest(&self) -> &Digest {
        match self {
            Self::Registry(found) => &found.digest,
            Self::Layout(found) => &found.digest,
            Self::Archive(found) => &found.digest,
        }
    }

    /// Compressed bytes of all layers.
    pub(crate) fn layer_bytes(&self) -> u64 {
        match self {
            Self::Registry(found) => found.manifest.layer_bytes(),
            Self::Layout(found) => found.manifest.layer_bytes(),
            Self::Archive(found) => found.layer_bytes(),
        }
    }

    /// The image's configuration, checked against its digest, this machine and the number of layers.
    pub(crate) async fn config(&self, image: &str) -> Result<ConfigBlob, PullError> {
        let (blob, layers) = match self {
            Self::Registry(found) => (found.config().await?, found.manifest.layers.len()),
            Self::Layout(found) => (found.config()?, found.manifest.layers.len()),
            Self::Archive(found) => (found.config.clone(), found.layer_count()),
        };
        let config = ConfigBlob::parse(&blob)?;
        let host = Platform::host();
        if let Some(platform) = config.platform.as_ref().filter(|platform| !platform.runs_on(&host)) {
            let available = vec![platform.to_string()];
            return Err(PullError::NoPlatform { image: image.to_owned(), wanted: host.to_string(), available });
        }
        if config.diff_ids.len() != layers {
            let ids = config.diff_ids.len();
            return Err(bad_manifest(format!("it has {layers} layers, but its configuration describes {ids}")));
        }
        Ok(config)
    }

    /// Starts to hand out layers; the future does the work and ends when all are handed out or nobody wants more.
    /// `scratch` is a directory for downloads.
    pub(crate) fn layers(&self, scratch: &Path, meter: Meter) -> (Layers, impl Future<Output = ()> + Send) {
        // Room for every layer: a download never waits for the merge.
        let (sender, receiver) = mpsc::channel(MAX_LAYERS);
        let scratch = scratch.to_owned();
        let work = async move {
            match self {
                Self::Registry(found) => found.download(&scratch, &meter, &sender).await,
                Self::Layout(found) => hand_out(found.layers(), &sender).await,
                Self::Archive(found) => hand_out(found.layers(), &sender).await,
            }
        };
        (receiver, work)
    }
}

async fn hand_out(
    layers: impl Iterator<Item = Result<LayerBlob, PullError>>,
    sender: &mpsc::Sender<Result<LayerBlob, PullError>>,
) {
    for layer in layers {
        let failed = layer.is_err();
        if sender.send(layer).await.is_err() || failed {
            break;
        }
    }
}

async fn blocking<T: Send + 'static>(
    image: &str,
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    let cancelled = |_| PullError::Cancelled { image: image.to_owned() };
    tokio::task::spawn_blocking(work).await.map_err(cancelled)?
}

/// Opens a regular file for reading, with the error a pull reports. Anything else could block for ever.
pub(crate) fn open(path: &Path) -> Result<File, PullError> {
    let failed = |error| PullError::io("open", path, error);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))),
    }
}
