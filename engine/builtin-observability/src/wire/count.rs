//! How much there is in a request, before any of it takes memory.
//!
//! A span of two letters, `{}`, becomes hundreds of bytes: a frame's length bounds nothing. Every element of every
//! list counts; what is outside of lists has its place in the element around it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Of all lists of one request together; SDKs send 512 items at a time.
pub(crate) const MAX_ELEMENTS: usize = 65_536;

/// `[0,0]`: an element takes two bytes at least.
const ELEMENT_BYTES: usize = 2;

/// # Errors
/// What is no JSON, or has more than [`MAX_ELEMENTS`].
pub(super) fn check(json: &str) -> Result<(), serde_json::Error> {
    if json.len() / ELEMENT_BYTES <= MAX_ELEMENTS {
        return Ok(());
    }
    let mut left = MAX_ELEMENTS;
    Count { left: &mut left }.deserialize(&mut serde_json::Deserializer::from_str(json))
}

/// Walks through any JSON and keeps nothing of it.
struct Count<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Count { left: self.left })?.is_some() {
            let left = self.left.checked_sub(1);
            *self.left = left.ok_or_else(|| A::Error::custom(format!("more than {MAX_ELEMENTS} elements")))?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key::<IgnoredAny>()?.is_some() {
            entries.next_value_seed(Count { left: self.left })?;
        }
        Ok(())
    }
}
