//! Header of every host↔guest frame, 12 bytes, little-endian:
//! ```text
//!  0        4        8      9       10         12
//!  ├ length ┼ stream ┼ kind ┼ flags ┼ reserved ┤ body: `length` bytes
//! ```

/// Largest body of a frame. A sender asserts it, a receiver refuses more.
pub const MAX_BODY_BYTES: u32 = 1024 * 1024;

/// Flag: the last `Input` of a stream (end of file), or the `Reply` that ends it.
pub const LAST: u8 = 0x01;

/// Names one request and everything that belongs to it; 0 is the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Guest → host on stream 0: JSON `Hello`.
    Hello = 1,
    /// Host → guest: JSON `Request`; opens a stream.
    Request = 2,
    /// Guest → host: JSON `Reply`; with LAST it closes the stream.
    Reply = 3,
    /// Host → guest: raw bytes (standard input, file content, tar archive).
    Input = 4,
    /// Guest → host: raw bytes (standard output, file content).
    Output = 5,
    /// Guest → host: raw bytes of standard error.
    ErrorOutput = 6,
    /// Both ways: four bytes, little-endian, the number of bytes granted.
    Credit = 7,
    /// Host → guest: JSON `Control`.
    Control = 8,
    /// Host → guest on stream 0, empty: come to rest, this memory is about to be saved.
    Freeze = 9,
    /// Guest → host on stream 0, empty: nothing is half sent, and nothing will be sent.
    Frozen = 10,
    /// Host → guest on stream 0, empty: go on as if nothing had happened.
    Thaw = 11,
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("frame body of {0} bytes exceeds the limit of {MAX_BODY_BYTES}")]
    TooLong(u32),
    #[error("frame kind {0} is unknown")]
    UnknownKind(u8),
    #[error("reserved bits of a frame header are set")]
    Reserved,
}

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the body in bytes, at most [`MAX_BODY_BYTES`].
    pub length: u32,
    pub stream: StreamId,
    pub kind: Kind,
    pub last: bool,
}

impl Header {
    pub const BYTES: usize = 12;

    /// The array's type is the length check: nothing below can be out of bounds.
    ///
    /// # Errors
    /// [`HeaderError`]; the connection must then be closed.
    pub fn parse(raw: &[u8; Self::BYTES]) -> Result<Self, HeaderError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags, r0, r1] = *raw;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > MAX_BODY_BYTES {
            return Err(HeaderError::TooLong(length));
        }
        if flags & !LAST != 0 || [r0, r1] != [0, 0] {
            return Err(HeaderError::Reserved);
        }
        Ok(Self {
            length,
            stream: StreamId(u32::from_le_bytes([s0, s1, s2, s3])),
            kind: Kind::try_from(kind)?,
            last: flags & LAST != 0,
        })
    }

    /// The bytes [`Header::parse`] reads back.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        debug_assert!(self.length <= MAX_BODY_BYTES);
        let mut raw = [0; Self::BYTES];
        raw[0..4].copy_from_slice(&self.length.to_le_bytes());
        raw[4..8].copy_from_slice(&self.stream.0.to_le_bytes());
        raw[8] = self.kind as u8;
        raw[9] = if self.last { LAST } else { 0 };
        raw
    }
}

impl TryFrom<u8> for Kind {
    type Error = HeaderError;

    fn try_from(value: u8) -> Result<Self, HeaderError> {
        Ok(match value {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Input,
            5 => Self::Output,
            6 => Self::ErrorOutput,
            7 => Self::Credit,
            8 => Self::Control,
            9 => Self::Freeze,
            10 => Self::Frozen,
            11 => Self::Thaw,
            other => return Err(HeaderError::UnknownKind(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_header_has_these_bytes() {
        let header = Header { length: 0x0102, stream: StreamId(7), kind: Kind::Output, last: true };
        assert_eq!(header.to_bytes(), [2, 1, 0, 0, 7, 0, 0, 0, 5, 1, 0, 0]);
    }

    #[test]
    fn a_body_over_the_limit_is_refused() {
        let mut raw = [0; Header::BYTES];
        raw[0..4].copy_from_slice(&(MAX_BODY_BYTES + 1).to_le_bytes());
        raw[8] = 2;
        assert_eq!(Header::parse(&raw), Err(HeaderError::TooLong(MAX_BODY_BYTES + 1)));
    }

    #[test]
    fn every_kind_is_read_as_the_number_it_is_written_as_and_no_other_number_is_a_kind() {
        for number in 0..=u8::MAX {
            match Kind::try_from(number) {
                Ok(kind) => assert_eq!((kind as u8, (1..=11).contains(&number)), (number, true)),
                Err(error) => {
                    assert_eq!((error, (1..=11).contains(&number)), (HeaderError::UnknownKind(number), false))
                }
            }
        }
    }

    proptest! {
        /// What parses is exactly what would be written, so no two byte strings mean the same header.
        #[test]
        fn whatever_parses_is_written_back_unchanged(raw in any::<[u8; Header::BYTES]>()) {
            if let Ok(header) = Header::parse(&raw) {
                prop_assert_eq!(header.to_bytes(), raw);
            }
        }
    }
}
