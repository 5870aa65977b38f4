//! W3C baggage of a call: `key=value;property,key=value`, values percent-encoded.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// A header's entries; what is none is passed by. Of equal keys the last wins.
pub(crate) fn entries(baggage: &str) -> Map<String, Value> {
    let entry = |member: &str| {
        let (key, value) = member.split(';').next()?.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
        let key = key.trim();
        (!key.is_empty()).then(|| (key.to_owned(), Value::String(value)))
    };
    baggage.split(',').filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_decoded_and_properties_left_out() {
        let read = entries("user=ada%20l, tier = gold;ttl=3 ,broken,=x,n=");
        assert_eq!(Value::Object(read), json!({"user": "ada l", "tier": "gold", "n": ""}));
        assert!(entries("").is_empty());
    }
}
