//! A sha256 content digest, checked once, and the hasher that makes one.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The sha256 digest of some content, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// A text that is no sha256 digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not a digest of the form sha256:<64 hex digits>")]
pub struct DigestError {
    /// What was given.
    pub given: String,
}

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// Reads `sha256:<hex>`. Other algorithms are refused: nothing else could be verified.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        match text.strip_prefix(Self::PREFIX) {
            Some(hex) if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Ok(Self(hex.to_owned()))
            }
            _ => Err(DigestError { given: text.chars().take(200).collect() }),
        }
    }

    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(content);
        hasher.finish()
    }

    /// The 64 hex digits: a safe file name.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first 16 bytes: enough to name the image inside its superblock.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        for (byte, pair) in uuid.iter_mut().zip(self.0.as_bytes().chunks(2)) {
            let digit = |c: u8| if c.is_ascii_digit() { c - b'0' } else { c - b'a' + 10 };
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        uuid
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Default, Clone)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub(crate) fn finish(self) -> Digest {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.0.finalize().iter() {
            write!(hex, "{byte:02x}").expect("a String takes any text");
        }
        Digest(hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        let empty = Digest::of(b"");
        assert_eq!(empty.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Digest::parse(&empty.to_string()), Ok(empty.clone()));
        assert_eq!(empty.uuid()[..3], [0xe3, 0xb0, 0xc4]);
    }

    #[test]
    fn other_algorithms_upper_case_and_paths_are_refused() {
        for text in ["", "sha256:", "sha512:00", "sha256:../../etc/passwd", &format!("sha256:{}", "A".repeat(64))] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
    }
}
