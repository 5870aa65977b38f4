//! Where an image is: in a registry, in an OCI layout directory, or in a `docker save` archive.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// An image reference, complete: registry, repository and tag are filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    source: Source,
}

/// The three places an image can come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Registry(RegistryRef),
    /// A directory in the OCI image layout.
    Layout {
        path: PathBuf,
        tag: Option<String>,
        pin: Option<Digest>,
    },
    /// A tar archive written by `docker save`.
    Archive {
        path: PathBuf,
        tag: Option<String>,
    },
}

/// `registry/repository:tag@digest`, every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RegistryRef {
    /// `host` or `host:port`; `docker.io` for the Docker Hub.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) pin: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefError {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// Longer than any registry takes.
    #[error("the image reference has {bytes} bytes; at most {max} are allowed", max = MAX_BYTES)]
    TooLong {
        /// Length of the text given.
        bytes: usize,
    },
    /// The repository breaks the rules of the distribution specification.
    #[error(
        "image reference `{reference}`: `{repository}` is not a repository name (lower-case letters, digits, and . _ - / between them)"
    )]
    Repository {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        repository: String,
    },
    /// The tag breaks the rules.
    #[error("image reference `{reference}`: `{tag}` is not a tag (letters, digits, . _ -, at most 128 characters)")]
    Tag {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        tag: String,
    },
    /// The registry is no host name with an optional port.
    #[error("image reference `{reference}`: `{registry}` is not a registry host[:port]")]
    Registry {
        /// The whole text.
        reference: String,
        /// The part that is wrong.
        registry: String,
    },
    /// What stands after `@` is no digest.
    #[error("image reference `{reference}` has a bad pin")]
    Pin {
        /// The whole text.
        reference: String,
        /// What is wrong with it.
        source: crate::digest::DigestError,
    },
    /// A local path that is relative: it would depend on the daemon's directory.
    #[error("image reference `{reference}`: the path after `{scheme}` must be absolute")]
    RelativePath {
        /// The whole text.
        reference: String,
        /// `oci:` or `docker-archive:`.
        scheme: &'static str,
    },
}

const MAX_BYTES: usize = 4096;
const DOCKER_HUB: &str = "docker.io";
const LAYOUT: &str = "oci:";
const ARCHIVE: &str = "docker-archive:";

impl ImageRef {
    /// Reads a reference:
    ///
    /// - `[registry/]repository[:tag][@sha256:…]`, with the defaults `docker.io`, `library/` and `latest`;
    /// - `oci:/absolute/path[:tag][@sha256:…]`, a directory in the OCI image layout;
    /// - `docker-archive:/absolute/path.tar[:name:tag]`, what `docker save` writes.
    ///
    /// # Errors
    /// [`RefError`], which names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, RefError> {
        if text.is_empty() {
            return Err(RefError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(RefError::TooLong { bytes: text.len() });
        }
        let source = if let Some(rest) = text.strip_prefix(LAYOUT).filter(|rest| !looks_like_tag(rest)) {
            parse_layout(text, rest)?
        } else if let Some(rest) = text.strip_prefix(ARCHIVE).filter(|rest| !looks_like_tag(rest)) {
            parse_archive(text, rest)?
        } else {
            Source::Registry(parse_registry(text)?)
        };
        Ok(Self { source })
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Whether the image comes from this machine's file system, so that asking for it costs no network.
    pub fn is_local(&self) -> bool {
        !matches!(self.source, Source::Registry(_))
    }
}

impl std::str::FromStr for ImageRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        Self::parse(text)
    }
}

impl fmt::Display for ImageRef {
    /// The canonical form: equal references print equally.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Registry(reference) => reference.fmt(f),
            Source::Layout { path, tag, pin } => {
                write!(f, "{LAYOUT}{}", path.display())?;
                write_suffix(f, tag.as_deref(), pin.as_ref())
            }
            Source::Archive { path, tag } => {
                write!(f, "{ARCHIVE}{}", path.display())?;
                write_suffix(f, tag.as_deref(), None)
            }
        }
    }
}

impl fmt::Display for RegistryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        write_suffix(f, Some(&self.tag), self.pin.as_ref())
    }
}

fn write_suffix(f: &mut fmt::Formatter<'_>, tag: Option<&str>, pin: Option<&Digest>) -> fmt::Result {
    if let Some(tag) = tag {
        write!(f, ":{tag}")?;
    }
    if let Some(pin) = pin {
        write!(f, "@{pin}")?;
    }
    Ok(())
}

/// `oci:latest` is the Docker Hub's repository `oci`; a path always holds a `/`.
fn looks_like_tag(rest: &str) -> bool {
    !rest.contains('/') && is_tag(rest)
}

fn parse_layout(text: &str, rest: &str) -> Result<Source, RefError> {
    let (rest, pin) = split_pin(text, rest)?;
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    Ok(Source::Layout { path: absolute(text, path, LAYOUT)?, tag: checked_tag(text, tag)?, pin })
}

/// The name inside an archive may itself hold colons and slashes (`host:5000/app:1`), so the path ends at the
/// first colon; a path with a colon in it cannot be named, as with other tools.
fn parse_archive(text: &str, rest: &str) -> Result<Source, RefError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name.to_owned())),
        None => (rest, None),
    };
    if let Some(name) = name.as_deref().filter(|name| name.is_empty()) {
        return Err(RefError::Tag { reference: text.to_owned(), tag: name.to_owned() });
    }
    Ok(Source::Archive { path: absolute(text, path, ARCHIVE)?, tag: name })
}

fn absolute(text: &str, path: &str, scheme: &'static str) -> Result<PathBuf, RefError> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(RefError::RelativePath { reference: text.to_owned(), scheme });
    }
    Ok(path.components().collect())
}

fn parse_registry(text: &str) -> Result<RegistryRef, RefError> {
    let (rest, pin) = split_pin(text, text)?;
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((host, path)) if is_registry_like(host) => (host, path.to_owned()),
        Some(_) => (DOCKER_HUB, name.to_owned()),
        None => (DOCKER_HUB, format!("library/{name}")),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    // `docker.io/debian` is `docker.io/library/debian`.
    let repository = match registry {
        DOCKER_HUB if !repository.contains('/') => format!("library/{repository}"),
        _ => repository,
    };
    if !is_host(registry) {
        return Err(RefError::Registry { reference: text.to_owned(), registry: registry.to_owned() });
    }
    if !is_repository(&repository) {
        return Err(RefError::Repository { reference: text.to_owned(), repository });
    }
    let tag = checked_tag(text, tag)?.unwrap_or_else(|| "latest".to_owned());
    Ok(RegistryRef { registry: registry.to_owned(), repository, tag, pin })
}

fn split_pin<'a>(text: &str, rest: &'a str) -> Result<(&'a str, Option<Digest>), RefError> {
    match rest.rsplit_once('@') {
        None => Ok((rest, None)),
        Some((rest, pin)) => Digest::parse(pin)
            .map(|pin| (rest, Some(pin)))
            .map_err(|source| RefError::Pin { reference: text.to_owned(), source }),
    }
}

fn checked_tag(text: &str, tag: Option<&str>) -> Result<Option<String>, RefError> {
    match tag {
        None => Ok(None),
        Some(tag) if is_tag(tag) => Ok(Some(tag.to_owned())),
        Some(tag) => Err(RefError::Tag { reference: text.to_owned(), tag: tag.to_owned() }),
    }
}

/// The rule every client follows: a first part with a dot or a colon, or `localhost`, is a host.
fn is_registry_like(host: &str) -> bool {
    host.contains(['.', ':']) || host == "localhost"
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("ipv6", rest.strip_prefix(':')),
        Some(_) => return false,
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let name_ok = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    name_ok && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// The grammar of the distribution specification: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/…)*`.
fn is_repository(repository: &str) -> bool {
    repository.len() <= 255 && repository.split('/').all(is_repository_part)
}

fn is_repository_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    if !ends.is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last)) {
        return false;
    }
    bytes
        .split(|b| alphanumeric(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    matches!(bytes.first(), Some(first) if first.is_ascii_alphanumeric() || *first == b'_')
        && bytes.len() <= 128
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, canonical: &str) {
        let parsed = ImageRef::parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
        assert_eq!(parsed.to_string(), canonical, "{given}");
        assert_eq!(ImageRef::parse(canonical).unwrap(), parsed, "canonical form of {given} reads back");
    }

    #[test]
    fn defaults_are_filled_in() {
        check("python", "docker.io/library/python:latest");
        check("oci:latest", "docker.io/library/oci:latest");
        check("docker.io/debian:12", "docker.io/library/debian:12");
        check("index.docker.io/debian", "docker.io/library/debian:latest");
        check("me/app:1.2", "docker.io/me/app:1.2");
        check("localhost/app", "localhost/app:latest");
        check("127.0.0.1:5000/team/app:x", "127.0.0.1:5000/team/app:x");
        check("[::1]:5000/app", "[::1]:5000/app:latest");
        check("ghcr.io/a/b__c/d--e", "ghcr.io/a/b__c/d--e:latest");
    }

    #[test]
    fn pins_are_kept_beside_the_tag() {
        let pin = format!("sha256:{}", "0".repeat(64));
        check(&format!("debian@{pin}"), &format!("docker.io/library/debian:latest@{pin}"));
        check(&format!("oci:/images/a:x@{pin}"), &format!("oci:/images/a:x@{pin}"));
    }

    #[test]
    fn local_sources_have_absolute_paths() {
        check("oci:/images/python", "oci:/images/python");
        check("oci:/images//python/:3.11", "oci:/images/python:3.11");
        check("docker-archive:/tmp/a.tar", "docker-archive:/tmp/a.tar");
        check("docker-archive:/tmp/a.tar:host:5000/app:1", "docker-archive:/tmp/a.tar:host:5000/app:1");
    }

    #[test]
    fn errors_name_the_part_that_is_wrong() {
        let message = |text: &str| ImageRef::parse(text).expect_err(text).to_string();
        assert_eq!(message(""), "the image reference is empty");
        assert!(message("Debian").contains("`library/Debian` is not a repository"));
        assert!(message("debian:").contains("`` is not a tag"));
        assert!(message("a.b:99999/x").contains("`a.b:99999` is not a registry"));
        assert!(message("debian@sha256:12").contains("bad pin"));
        assert!(message("oci:./images").contains("must be absolute"));
        assert!(message("docker-archive:x/y.tar").contains("must be absolute"));
        assert!(message("../../etc").contains("is not a"));
        assert!(message("https://example.com/app").contains("is not a"));
        assert!(message(&"a".repeat(5000)).contains("5000 bytes"));
    }
}
