//! Ids of traces and spans: 16 and 8 bytes, written as lower-case hex.

use std::fmt;

use uuid::Uuid;

/// Of a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

/// Of a span in its trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        bytes(text).map(Self)
    }

    #[must_use]
    pub fn random() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Evenly spread over all numbers: the last seven bytes, which W3C has random (the ones before hold a UUID's variant).
    pub(crate) fn spread(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, low @ ..] = self.0;
        u64::from_be_bytes(low) << 8
    }
}

impl SpanId {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        bytes(text).map(Self)
    }

    #[must_use]
    pub fn random() -> Self {
        let [first @ .., _, _, _, _, _, _, _, _] = *Uuid::new_v4().as_bytes();
        Self(first)
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// Exactly `N` bytes of hex, not all zero.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

fn digit(letter: u8) -> Option<u8> {
    match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        b'A'..=b'F' => Some(letter - b'A' + 10),
        _ => None,
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

/// The ids of a W3C `traceparent`, whatever its flags.
pub(crate) fn of_traceparent(traceparent: &str) -> Option<(TraceId, SpanId)> {
    let mut parts = traceparent.split('-');
    let version = parts.next()?;
    let ids = (TraceId::parse(parts.next()?)?, SpanId::parse(parts.next()?)?);
    (version.len() == 2 && version != "ff").then_some(ids)
}

pub(crate) fn traceparent(trace: TraceId, span: SpanId) -> String {
    format!("00-{trace}-{span}-01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_either_case_and_written_in_lower_case() {
        let id = TraceId::parse("3F2A9C7A6F1F4B5D8E2C0A1B2C3D4E5F").expect("an id");
        assert_eq!(id.to_string(), "3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f");
        for bad in ["", "3f", "00000000000000000000000000000000", "zf2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f", "é"] {
            assert_eq!(TraceId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_traceparent_with_any_flags_is_read_and_a_broken_one_is_none() {
        let good = "00-3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f-9a8b7c6d5e4f3a2b-03";
        let (trace, span) = of_traceparent(good).expect("ids");
        assert_eq!(traceparent(trace, span), good.replace("-03", "-01"));
        for bad in ["", "00", "00-1-2-01", "ff-3f2a9c7a6f1f4b5d8e2c0a1b2c3d4e5f-9a8b7c6d5e4f3a2b-01"] {
            assert_eq!(of_traceparent(bad), None, "{bad}");
        }
    }
}
