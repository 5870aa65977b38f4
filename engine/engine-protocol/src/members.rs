//! Takes a key out of an object's text and leaves every other byte of its members as it is.
//!
//! Whoever parsed and wrote the object anew would lose what his own types cannot hold: numbers beyond them, the second
//! of two equal keys, half a surrogate pair. So this looks for the borders of the members only. It sees to it that none
//! is missed, not that the values are JSON: a value ends at the first comma or brace outside of strings and brackets.

use crate::json::{expect, skip_space, skip_string};

/// The text between the object's braces without the members called `key`, or `None` for what is no object.
///
/// `key` may be spelled with `\u` escapes in the object; it must itself need none. Members keep the white space around
/// them; commas are set anew.
#[must_use]
pub fn without_member(object: &str, key: &str) -> Option<String> {
    let bytes = object.as_bytes();
    let mut kept = String::with_capacity(object.len());
    let mut at = expect(bytes, 0, b'{')?;
    let start = at;
    at = skip_space(bytes, at);
    if bytes.get(at) == Some(&b'}') {
        kept.push_str(object.get(start..at)?);
        return (at + 1 == bytes.len()).then_some(kept);
    }
    let (mut start, mut first) = (start, true);
    loop {
        at = skip_space(bytes, at);
        let name = at;
        at = skip_string(bytes, at)?;
        // Without its quotes.
        let is_ours = spells(bytes.get(name + 1..at - 1)?, key.as_bytes());
        at = expect(bytes, skip_space(bytes, at), b':')?;
        at = skip_value(bytes, at)?;
        if !is_ours {
            if !std::mem::take(&mut first) {
                kept.push(',');
            }
            kept.push_str(object.get(start..at)?);
        }
        match bytes.get(at)? {
            b',' => at += 1,
            b'}' => return (at + 1 == bytes.len()).then_some(kept),
            _ => return None,
        }
        start = at;
    }
}

/// To the comma or brace that ends the member. An empty value is none.
fn skip_value(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = skip_space(bytes, start);
    if matches!(bytes.get(at)?, b',' | b'}') {
        return None;
    }
    // Depth is counted, not followed: no nesting is too deep.
    let mut depth = 0_usize;
    loop {
        match bytes.get(at)? {
            b',' | b'}' if depth == 0 => return Some(at),
            b'"' => {
                at = skip_string(bytes, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
}

/// Whether the inside of a JSON string means `wanted`, which holds nothing that must be escaped.
fn spells(mut written: &[u8], wanted: &[u8]) -> bool {
    for byte in wanted {
        written = match written {
            [b'\\', b'u', digits @ ..] if digits.len() >= 4 => {
                let (digits, rest) = digits.split_at(4);
                if hex(digits) != Some(u32::from(*byte)) {
                    return false;
                }
                rest
            }
            // Of the other escapes none means a character that needs no escape, except `\/`.
            [b'\\', b'/', rest @ ..] if *byte == b'/' => rest,
            [plain, rest @ ..] if plain == byte && *plain != b'\\' => rest,
            _ => return false,
        };
    }
    written.is_empty()
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value * 16 + char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests;
