//! A `RawValue` from text that is known to be JSON, without another look at it.
//!
//! `serde_json` builds a `RawValue` from any deserializer that hands it the text as the one entry of a map under a name of its own,
//! and tells that name when it asks.

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

/// `json` as it is; `None` from a `serde_json` that would read it again.
///
/// It must be one JSON value without space around it: whoever gets it relies on that.
pub(crate) fn known(json: String) -> Option<Box<RawValue>> {
    Box::<RawValue>::deserialize(Known(json)).ok()
}

struct Known(String);

impl<'de> Deserializer<'de> for Known {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entry { name, json: Some(self.0) })
    }

    forward_to_deserialize_any! {
        bool u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 char str string seq bytes byte_buf map struct option unit
        unit_struct tuple_struct tuple enum identifier ignored_any
    }
}

struct Entry {
    name: &'static str,
    json: Option<String>,
}

impl<'de> MapAccess<'de> for Entry {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        self.json.as_ref().map(|_| seed.deserialize(name)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let json: StringDeserializer<Error> = self.json.take().unwrap_or_default().into_deserializer();
        seed.deserialize(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, payloads would become `null`.
    #[test]
    fn serde_json_takes_the_text_as_it_is() {
        for json in ["null", "1.50", r#"{"a" : [1e999, "\ud800"]}"#] {
            assert_eq!(known(json.to_owned()).expect("a value").get(), json);
        }
    }
}
