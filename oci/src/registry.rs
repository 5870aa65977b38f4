//! Images in a registry, over the distribution protocol: mirrors first, then the registry itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::credentials;
use crate::digest::{Digest, Hasher};
use crate::error::PullError;
use crate::manifest::{Document, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH, Manifest, Platform, bad_manifest};
use crate::progress::Meter;
use crate::reference::RegistryRef;
use crate::source::LayerBlob;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// `host[:port]` of registries spoken to without TLS, besides those on the loopback.
    pub insecure: Vec<String>,
    /// Registries to ask first, by the registry they stand in for.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Docker's `config.json`, for credentials; `None`: no credentials.
    pub docker_config: Option<PathBuf>,
}

impl RegistryOptions {
    /// Reads `III_INSECURE_REGISTRIES` (hosts, separated by commas), and finds Docker's configuration by
    /// `DOCKER_CONFIG` or in the home directory.
    pub fn from_env() -> Self {
        let insecure = std::env::var("III_INSECURE_REGISTRIES").unwrap_or_default();
        let insecure = insecure.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect();
        Self { insecure, mirrors: BTreeMap::new(), docker_config: credentials::default_path() }
    }

    fn protocol(&self, registry: &str) -> ClientProtocol {
        let host = match registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => registry.split(':').next().unwrap_or(registry),
        };
        let loopback = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let listed = self.insecure.iter().any(|known| known == registry || known == host);
        if loopback || listed { ClientProtocol::Http } else { ClientProtocol::Https }
    }
}

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Longest silence within an answer.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// Authentication and manifest together.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(60);
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
const PARALLEL_DOWNLOADS: usize = 3;
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// An image of a registry.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    endpoint: Endpoint,
}

/// A registry or mirror, with credentials, for one image.
#[derive(Clone)]
struct Endpoint {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    registry: String,
    /// The reference as the user wrote it.
    image: Arc<str>,
}

/// Finds the manifest for `host`, at the first mirror that has it or at the registry itself.
pub(crate) async fn resolve(
    reference: &RegistryRef,
    image: &str,
    options: &RegistryOptions,
    host: &Platform,
) -> Result<Found, PullError> {
    for mirror in options.mirrors.get(&reference.registry).into_iter().flatten() {
        match resolve_at(mirror, reference, image, options, host).await {
            Ok(found) => return Ok(found),
            Err(error) => tracing::warn!(mirror, code = error.code(), %error, "mirror was passed over"),
        }
    }
    resolve_at(&reference.registry, reference, image, options, host).await
}

async fn resolve_at(
    registry: &str,
    wanted: &RegistryRef,
    image: &str,
    options: &RegistryOptions,
    host: &Platform,
) -> Result<Found, PullError> {
    let (name, repository) = (registry.to_owned(), wanted.repository.clone());
    let reference = match &wanted.pin {
        Some(pin) => Reference::with_digest(name, repository, pin.to_string()),
        None => Reference::with_tag(name, repository, wanted.tag.clone()),
    };
    let config = ClientConfig {
        protocol: options.protocol(registry),
        connect_timeout: Some(CONNECT_DEADLINE),
        read_timeout: Some(READ_DEADLINE),
        platform_resolver: None,
        user_agent: concat!("iii-oci/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let stated = match &options.docker_config {
        Some(path) => credentials::find(path, registry).await?,
        None => None,
    };
    let auth = stated.map_or(RegistryAuth::Anonymous, |found| RegistryAuth::Basic(found.user, found.secret));
    let failed = |error| classify(error, registry, image);
    let client = Client::try_from(config).map_err(failed)?;
    let endpoint = Endpoint { client, auth, reference, registry: registry.to_owned(), image: image.into() };
    let resolving = endpoint.resolve(wanted.pin.as_ref(), host);
    tokio::time::timeout(RESOLVE_DEADLINE, resolving).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", RESOLVE_DEADLINE.as_secs());
        Err(PullError::Unreachable { registry: registry.to_owned(), reason })
    })
}

impl Endpoint {
    async fn resolve(self, pin: Option<&Digest>, host: &Platform) -> Result<Found, PullError> {
        let pull = RegistryOperation::Pull;
        // The client ignores failures when it authenticates by itself, and then reports a worse one.
        self.client.auth(&self.reference, &self.auth, pull).await.map_err(|error| self.failed(error))?;
        let (mut digest, mut document) = self.document(&self.reference, pin).await?;
        let mut platforms = Vec::new();
        for _ in 0..=MAX_INDEX_DEPTH {
            let index = match document {
                Document::Manifest(manifest) => return Ok(Found { digest, manifest, endpoint: self }),
                Document::Index(index) => index,
            };
            platforms.extend(index.platforms());
            let Some(entry) = index.candidates(host).into_iter().next() else {
                let (image, wanted) = (self.image.to_string(), host.to_string());
                return Err(PullError::NoPlatform { image, wanted, available: platforms });
            };
            digest = entry.checked()?.0;
            let reference = self.reference.clone_with_digest(digest.to_string());
            (digest, document) = self.document(&reference, Some(&digest)).await?;
        }
        Err(bad_manifest(format!("its indexes are nested deeper than {MAX_INDEX_DEPTH}")))
    }

    /// Fetches and checks a manifest or an index.
    async fn document(
        &self,
        reference: &Reference,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Document), PullError> {
        let fetched = self.client.pull_manifest_raw(reference, &self.auth, ACCEPTED).await;
        let (raw, _) = fetched.map_err(|error| match (&error, expected) {
            (OciDistributionError::DigestError(_), Some(expected)) => {
                mismatch("manifest", expected, error_digest(&error).unwrap_or_else(|| expected.clone()))
            }
            _ => self.failed(error),
        })?;
        if raw.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(bad_manifest(format!("it is larger than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let found = Digest::of(&raw);
        match expected.filter(|expected| **expected != found) {
            Some(expected) => Err(mismatch("manifest", expected, found)),
            None => Document::parse(&raw).map(|document| (found, document)),
        }
    }

    /// Fetches a blob to `target`, in up to three attempts.
    async fn blob(
        &self,
        what: &str,
        blob: &Descriptor<'_>,
        mut target: Target<'_>,
        meter: &Meter,
    ) -> Result<(), PullError> {
        let mut waits = WAITS.into_iter();
        loop {
            let error = match self.attempt(what, blob, &mut target, meter).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let hopeless = matches!(
                error,
                PullError::Denied { .. }
                    | PullError::NotFound { .. }
                    | PullError::NoSpace { .. }
                    | PullError::Io { .. }
            );
            match (hopeless, waits.next()) {
                (false, Some(wait)) => {
                    tracing::warn!(digest = %blob.digest, %error, "a blob is fetched again");
                    tokio::time::sleep(wait).await;
                }
                (false, None) if !matches!(error, PullError::DigestMismatch { .. }) => {
                    return Err(PullError::Download {
                        digest: blob.digest.clone(),
                        registry: self.registry.clone(),
                        attempts: WAITS.len() as u32 + 1,
                        reason: chain(&error),
                    });
                }
                _ => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        what: &str,
        blob: &Descriptor<'_>,
        target: &mut Target<'_>,
        meter: &Meter,
    ) -> Result<(), PullError> {
        let descriptor =
            OciDescriptor { digest: blob.digest.to_string(), size: blob.size as i64, ..OciDescriptor::default() };
        let mut pieces = match self.client.pull_blob_stream(&self.reference, &descriptor).await {
            Ok(sized) => sized.stream,
            Err(error) => return Err(self.failed(error)),
        };
        target.restart().await?;
        let (mut hasher, mut received) = (Hasher::default(), 0_u64);
        let outcome = loop {
            let piece = match pieces.next().await {
                None => break Ok(()),
                // The client checks the digest too, and says so in place of the end.
                Some(Err(_)) if received == blob.size => break Ok(()),
                Some(Err(error)) => break Err(self.broken(&error)),
                Some(Ok(piece)) => piece,
            };
            received += piece.len() as u64;
            meter.add(piece.len() as u64);
            if received > blob.size {
                break Err(self.broken(&std::io::Error::other("it sent more bytes than the manifest states")));
            }
            hasher.update(&piece);
            if let Err(error) = target.write(&piece).await {
                break Err(error);
            }
        };
        let checked = match outcome {
            Ok(()) if received < blob.size => {
                Err(self.broken(&std::io::Error::other(format!("it sent {received} of {} bytes", blob.size))))
            }
            Ok(()) => match hasher.finish() {
                found if found == *blob.digest => target.finish().await,
                found => Err(mismatch(what, blob.digest, found)),
            },
            Err(error) => Err(error),
        };
        if checked.is_err() {
            meter.subtract(received);
        }
        checked
    }

    fn failed(&self, error: OciDistributionError) -> PullError {
        classify(error, &self.registry, &self.image)
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> PullError {
        PullError::Registry { registry: self.registry.clone(), image: self.image.to_string(), reason: chain(error) }
    }
}

/// What to fetch.
struct Descriptor<'a> {
    digest: &'a Digest,
    size: u64,
}

/// Where a blob goes: into memory for documents, to disk for layers.
enum Target<'a> {
    Memory(&'a mut Vec<u8>),
    File { path: &'a Path, file: Option<tokio::io::BufWriter<tokio::fs::File>> },
}

impl Target<'_> {
    async fn restart(&mut self) -> Result<(), PullError> {
        match self {
            Self::Memory(content) => content.clear(),
            Self::File { path, file } => {
                let created =
                    tokio::fs::File::create(&*path).await.map_err(|error| PullError::io("create", path, error))?;
                *file = Some(tokio::io::BufWriter::with_capacity(512 << 10, created));
            }
        }
        Ok(())
    }

    async fn write(&mut self, piece: &[u8]) -> Result<(), PullError> {
        match self {
            Self::Memory(content) => content.extend_from_slice(piece),
            Self::File { path, file: Some(file) } => {
                file.write_all(piece).await.map_err(|error| PullError::io("write", path, error))?;
            }
            Self::File { file: None, .. } => {}
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), PullError> {
        match self {
            Self::File { path, file: Some(file) } => {
                file.flush().await.map_err(|error| PullError::io("write", path, error))
            }
            _ => Ok(()),
        }
    }
}

impl Found {
    pub(crate) async fn config(&self) -> Result<Vec<u8>, PullError> {
        let (digest, size) = self.manifest.config.checked()?;
        if size > MAX_DOCUMENT_BYTES {
            return Err(bad_manifest(format!("its configuration is larger than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let mut content = Vec::new();
        let blob = Descriptor { digest: &digest, size };
        self.endpoint.blob("configuration", &blob, Target::Memory(&mut content), &Meter::default()).await?;
        Ok(content)
    }

    /// Fetches layers into `scratch`, some at a time, and hands them out in order.
    pub(crate) async fn download(
        &self,
        scratch: &Path,
        meter: &Meter,
        sender: &mpsc::Sender<Result<LayerBlob, PullError>>,
    ) {
        let fetches = (0..self.manifest.layers.len()).map(|index| self.layer(index, scratch, meter));
        let mut layers = std::pin::pin!(stream::iter(fetches).buffered(PARALLEL_DOWNLOADS));
        loop {
            let layer = tokio::select! {
                layer = layers.next() => layer,
                // The merge failed: nobody wants the rest.
                () = sender.closed() => None,
            };
            let Some(layer) = layer else { return };
            let failed = layer.is_err();
            if sender.send(layer).await.is_err() || failed {
                return;
            }
        }
    }

    async fn layer(&self, index: usize, scratch: &Path, meter: &Meter) -> Result<LayerBlob, PullError> {
        let (digest, size) = self.manifest.layers[index].checked()?;
        let path = scratch.join(format!("layer-{index}"));
        let target = Target::File { path: &path, file: None };
        let what = format!("layer {}", index + 1);
        self.endpoint.blob(&what, &Descriptor { digest: &digest, size }, target, meter).await?;
        Ok(LayerBlob { path, offset: 0, length: size, is_download: true, promise: None })
    }
}

/// Tells apart what a person can do something about: wrong name, no access, no network, broken registry.
fn classify(error: OciDistributionError, registry: &str, image: &str) -> PullError {
    let (registry, image) = (registry.to_owned(), image.to_owned());
    let reason = chain(&error);
    let not_found = |registry: String, image| PullError::NotFound {
        image,
        place: format!("registry `{registry}`"),
        available: Vec::new(),
    };
    match &error {
        OciDistributionError::RequestError(request) if request.is_connect() || request.is_timeout() => {
            PullError::Unreachable { registry, reason }
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            PullError::Denied { registry, image, reason }
        }
        OciDistributionError::ImageManifestNotFoundError(_) | OciDistributionError::ServerError { code: 404, .. } => {
            not_found(registry, image)
        }
        OciDistributionError::ServerError { code: 401 | 403, .. } => PullError::Denied { registry, image, reason },
        OciDistributionError::RegistryError { envelope, .. } => {
            let said = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
            if said(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                not_found(registry, image)
            } else if said(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                PullError::Denied { registry, image, reason }
            } else {
                PullError::Registry { registry, image, reason }
            }
        }
        _ => PullError::Registry { registry, image, reason },
    }
}

fn mismatch(what: &str, expected: &Digest, found: Digest) -> PullError {
    PullError::DigestMismatch { what: what.to_owned(), expected: expected.clone(), found }
}

/// The digest the client computed, where its error has it.
fn error_digest(error: &OciDistributionError) -> Option<Digest> {
    match error {
        OciDistributionError::DigestError(oci_client::errors::DigestError::VerificationError { actual, .. }) => {
            Digest::parse(actual).ok()
        }
        _ => None,
    }
}

/// An error with its causes, for a message whose reader will not see a chain.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_the_loopback_and_listed_hosts_only() {
        let options = RegistryOptions { insecure: vec!["lab:5000".into(), "other".into()], ..Default::default() };
        for host in ["localhost", "localhost:1", "127.0.0.1:5000", "[::1]:5000", "lab:5000", "other:80"] {
            assert_eq!(options.protocol(host), ClientProtocol::Http, "{host}");
        }
        for host in ["docker.io", "lab", "lab:5001", "127.0.0.1.example.com", "localhost.example.com"] {
            assert_eq!(options.protocol(host), ClientProtocol::Https, "{host}");
        }
    }
}
