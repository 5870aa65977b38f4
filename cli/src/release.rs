//! Where releases are published: an index of latest versions, archives, and a checksum beside each.
//!
//! ```text
//! <base>/index.json                                          which versions there are, for which platforms
//! <base>/<program>/<version>/<program>-<platform>.tar.gz     the files
//! <base>/<program>/<version>/<program>-<platform>.tar.gz.sha256
//! ```
//! A version's folder never changes, so an index is replaced last. All that comes from there is hostile until its
//! checksum has been compared; the checksum is as good as the connection, so that has to be HTTPS or loopback.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest, Sha256};

const MAX_INDEX_BYTES: u64 = 1 << 20;
const MAX_CHECKSUM_BYTES: u64 = 4096;
const MAX_ARCHIVE_BYTES: u64 = 1 << 30;

/// Platforms that an error names.
const MAX_NAMED: usize = 20;

const MAX_REDIRECTS: usize = 5;

const CONNECT: Duration = Duration::from_secs(20);

/// A server that is silent for so long is not waited for.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReleaseError {
    #[error("`{url}` is no address of releases: {reason}")]
    Address { url: String, reason: &'static str },
    #[error("could not prepare downloads: {}", chain(source))]
    Client { source: reqwest::Error },
    #[error("could not download {url}: {}", chain(source))]
    Transfer { url: String, source: reqwest::Error },
    #[error("could not download {url}: the server says {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} is larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("could not save what {url} sends: {source}")]
    Save { url: String, source: io::Error },
    #[error("{url} is no index of releases: {source}")]
    Index { url: String, source: serde_json::Error },
    #[error("no release of {program} is published")]
    NotPublished { program: String },
    #[error("{program} {version} is not built for {platform}; it is for {supported}")]
    NotForPlatform { program: String, version: semver::Version, platform: String, supported: String },
    #[error("{url} holds no SHA-256 of `{archive}`")]
    Checksum { url: String, archive: String },
    #[error("`{archive}` is damaged: its SHA-256 is {found}, not {expected}")]
    Damaged { archive: String, expected: String, found: String },
}

impl ReleaseError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Address { .. } => {
                Some("write it as https://HOST/PATH; http:// is for loopback addresses only".into())
            }
            Self::Damaged { .. } => {
                Some("nothing was replaced; try again, and tell whoever publishes the releases if it stays".into())
            }
            Self::Transfer { .. } | Self::Status { .. } => {
                Some("nothing was replaced; check III_UPDATE_URL and the network, and try again".into())
            }
            _ => None,
        }
    }
}

/// An error with what it came from.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The latest version of each program.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    programs: BTreeMap<String, Latest>,
}

#[derive(Debug, Deserialize)]
struct Latest {
    version: semver::Version,
    /// Platforms it is built for.
    targets: Vec<String>,
}

/// One archive.
#[derive(Debug, PartialEq)]
pub(crate) struct Release {
    program: String,
    pub(crate) version: semver::Version,
    pub(crate) archive: String,
}

impl Index {
    pub(crate) fn version(&self, program: &str) -> Option<&semver::Version> {
        self.programs.get(program).map(|latest| &latest.version)
    }

    /// The latest release of a program for a platform.
    pub(crate) fn release(&self, program: &str, platform: &str) -> Result<Release, ReleaseError> {
        let latest = self.programs.get(program);
        let latest = latest.ok_or_else(|| ReleaseError::NotPublished { program: program.to_owned() })?;
        if !latest.targets.iter().any(|target| target == platform) {
            let named: Vec<&str> = latest.targets.iter().take(MAX_NAMED).map(String::as_str).collect();
            return Err(ReleaseError::NotForPlatform {
                program: program.to_owned(),
                version: latest.version.clone(),
                platform: platform.to_owned(),
                supported: if named.is_empty() { "no platform".into() } else { named.join(", ") },
            });
        }
        let archive = format!("{program}-{platform}.tar.gz");
        Ok(Release { program: program.to_owned(), version: latest.version.clone(), archive })
    }
}

/// A server of releases.
pub(crate) struct Server {
    base: Url,
    client: reqwest::Client,
}

impl Server {
    pub(crate) fn at(base: &str) -> Result<Self, ReleaseError> {
        let base = base_url(base)?;
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if !is_trustworthy(attempt.url()) {
                attempt.error("a redirect to an address without TLS")
            } else {
                attempt.follow()
            }
        });
        let client = reqwest::Client::builder().redirect(redirects).connect_timeout(CONNECT).read_timeout(SILENCE);
        let client = client.user_agent(concat!("iii/", env!("CARGO_PKG_VERSION"))).build();
        Ok(Self { base, client: client.map_err(|source| ReleaseError::Client { source })? })
    }

    pub(crate) async fn index(&self) -> Result<Index, ReleaseError> {
        let url = self.url(&["index.json"]);
        let text = self.fetch_small(&url, MAX_INDEX_BYTES).await?;
        serde_json::from_slice(&text).map_err(|source| ReleaseError::Index { url: shown(&url), source })
    }

    /// Saves the archive of `release` and compares its checksum.
    pub(crate) async fn download(&self, release: &Release, file: &mut File) -> Result<(), ReleaseError> {
        let archive = &release.archive;
        let version = release.version.to_string();
        let checksum_url = self.url(&[&release.program, &version, &format!("{archive}.sha256")]);
        let text = self.fetch_small(&checksum_url, MAX_CHECKSUM_BYTES).await?;
        let expected = checksum(&text, archive)
            .ok_or_else(|| ReleaseError::Checksum { url: shown(&checksum_url), archive: archive.clone() })?;
        let mut digest = Sha256::new();
        let url = self.url(&[&release.program, &version, archive]);
        self.fetch(&url, MAX_ARCHIVE_BYTES, |bytes| {
            digest.update(bytes);
            file.write_all(bytes)
        })
        .await?;
        let found = hex(&digest.finalize());
        if found == expected {
            return Ok(());
        }
        Err(ReleaseError::Damaged { archive: archive.clone(), expected, found })
    }

    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    async fn fetch_small(&self, url: &Url, limit: u64) -> Result<Vec<u8>, ReleaseError> {
        let mut body = Vec::new();
        self.fetch(url, limit, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })
        .await?;
        Ok(body)
    }

    /// Hands over the body piece by piece, at most `limit` bytes of it.
    async fn fetch(
        &self,
        url: &Url,
        limit: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ReleaseError> {
        let failed = |source: reqwest::Error| ReleaseError::Transfer { url: shown(url), source: source.without_url() };
        let mut response: Response = self.client.get(url.clone()).send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(ReleaseError::Status { url: shown(url), status: response.status() });
        }
        let mut received = 0;
        while let Some(bytes) = response.chunk().await.map_err(failed)? {
            received += bytes.len() as u64;
            if received > limit {
                return Err(ReleaseError::TooLarge { url: shown(url), limit });
            }
            take(&bytes).map_err(|source| ReleaseError::Save { url: shown(url), source })?;
        }
        Ok(())
    }
}

fn base_url(text: &str) -> Result<Url, ReleaseError> {
    let refused = |url: String, reason| ReleaseError::Address { url, reason };
    let url = Url::parse(text).map_err(|_| refused(text.to_owned(), "it is no URL"))?;
    if !is_trustworthy(&url) {
        return Err(refused(shown(&url), "whoever is on the way to it could send any program"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused(shown(&url), "it ends in `?…` or `#…`"));
    }
    Ok(url)
}

/// Whether what comes from there is from there.
fn is_trustworthy(url: &Url) -> bool {
    let loopback = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

/// Without the password that it may hold.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        // Only addresses without a host refuse this, and they hold no password.
        let _ = url.set_password(Some("****"));
    }
    url.to_string()
}

/// The digest in a file as `sha256sum` writes it, or one that is a digest alone, in lower case.
fn checksum(text: &[u8], archive: &str) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let digest = words.next()?.to_ascii_lowercase();
    let named = words.next().is_none_or(|name| name.trim_start_matches('*') == archive);
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && named && words.next().is_none()).then_some(digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_loopback() {
        for url in ["https://a.example/iii", "http://127.0.0.1:80/", "http://localhost:1", "http://[::1]:1/x/"] {
            assert!(base_url(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "releases",
            "http://a.example/",
            "http://127.0.0.1.a.example/",
            "http://localhost.a.example/",
            "file:///x",
            "ftp://a.example/",
            "https://a.example/?x=1",
        ] {
            let error = base_url(url).expect_err(url);
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        let error = base_url("http://me:secret@a.example/").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("me:"), "{error}");
    }

    #[test]
    fn parts_follow_the_path_of_the_address() {
        for base in ["https://a.example/iii", "https://a.example/iii/"] {
            let server = Server::at(base).unwrap();
            assert_eq!(server.url(&["index.json"]).as_str(), "https://a.example/iii/index.json");
            assert_eq!(server.url(&["../x", "a b"]).path(), "/iii/..%2Fx/a%20b");
        }
    }

    #[test]
    fn a_checksum_is_for_its_archive() {
        let digest = "0123456789abcdef".repeat(4);
        for text in
            [format!("{digest}\n"), format!("{digest}  a.tar.gz\n"), format!("{} *a.tar.gz", digest.to_uppercase())]
        {
            assert_eq!(checksum(text.as_bytes(), "a.tar.gz"), Some(digest.clone()), "{text}");
        }
        for text in
            ["", "abc", &digest[1..], &format!("{digest}  b.tar.gz"), &format!("{digest} a.tar.gz x"), &"x".repeat(64)]
        {
            assert_eq!(checksum(text.as_bytes(), "a.tar.gz"), None, "{text}");
        }
        assert_eq!(checksum(&[0xff; 64], "a.tar.gz"), None);
    }

    #[test]
    fn an_index_names_a_version_and_its_platforms() {
        let text = r#"{"programs":{"iii-console":{"version":"1.2.3","targets":["a-b-c"],"later":1}},"later":{}}"#;
        let index: Index = serde_json::from_str(text).unwrap();
        let release = index.release("iii-console", "a-b-c").unwrap();
        assert_eq!(
            (release.version.to_string().as_str(), release.archive.as_str()),
            ("1.2.3", "iii-console-a-b-c.tar.gz")
        );
        let error = index.release("iii-console", "x-y-z").unwrap_err().to_string();
        assert!(error.contains("x-y-z") && error.contains("a-b-c"), "{error}");
        assert!(matches!(index.release("iii", "a-b-c"), Err(ReleaseError::NotPublished { .. })));
        for text in ["", "[]", r#"{"programs":{"a":{"version":"../../x","targets":[]}}}"#] {
            assert!(serde_json::from_str::<Index>(text).is_err(), "{text}");
        }
    }
}
