//! Finds where a JSON value ends, and whether it is one: grammar only, nothing is built, no byte is looked at twice for long.
//!
//! Accepts what `serde_json` accepts as a `RawValue`, to the byte: what passes here is forwarded to parsers of others. Nesting has no
//! limit and costs a bit a level.

/// Of a string, as much as is looked at by the word: most end there.
const NEAR: usize = 64;

/// Of a long one, as much as is looked at together.
const BLOCK: usize = 64;

pub(crate) fn skip_space(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

pub(crate) fn expect(bytes: &[u8], at: usize, wanted: u8) -> Option<usize> {
    (bytes.get(at) == Some(&wanted)).then_some(at + 1)
}

/// From a value's first byte to behind its last; `None` if it is none.
pub(crate) fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut open = Nesting::default();
    loop {
        at = match *bytes.get(at)? {
            bracket @ (b'{' | b'[') => {
                at = skip_space(bytes, at + 1);
                let object = bracket == b'{';
                match *bytes.get(at)? {
                    b'}' if object => at + 1,
                    b']' if !object => at + 1,
                    _ => {
                        open.push(object);
                        if object {
                            at = skip_name(bytes, at)?;
                        }
                        continue;
                    }
                }
            }
            b'"' => skip_string(bytes, at)?,
            b't' => skip_word(bytes, at, b"true")?,
            b'f' => skip_word(bytes, at, b"false")?,
            b'n' => skip_word(bytes, at, b"null")?,
            _ => skip_number(bytes, at)?,
        };
        // Behind a value: what else ends here, and where the next one begins.
        loop {
            let Some(object) = open.innermost() else { return Some(at) };
            at = skip_space(bytes, at);
            match (*bytes.get(at)?, object) {
                (b'}', true) | (b']', false) => {
                    open.pop();
                    at += 1;
                }
                (b',', object) => {
                    at = skip_space(bytes, at + 1);
                    if object {
                        at = skip_name(bytes, at)?;
                    }
                    break;
                }
                _ => return None,
            }
        }
    }
}

/// From a member's name to its value.
pub(crate) fn skip_name(bytes: &[u8], at: usize) -> Option<usize> {
    let behind = skip_space(bytes, skip_string(bytes, at)?);
    Some(skip_space(bytes, expect(bytes, behind, b':')?))
}

/// From a string's first quote to behind its last.
pub(crate) fn skip_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = expect(bytes, at, b'"')?;
    loop {
        at = skip_plain(bytes, at);
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at = skip_escape(bytes, at + 1)?,
            _ => return None,
        }
    }
}

/// To the next quote, backslash or control character, or to the end.
fn skip_plain(bytes: &[u8], start: usize) -> usize {
    let rest = bytes.get(start..).unwrap_or_default();
    let (near, far) = rest.split_at(rest.len().min(NEAR));
    start + first_special(near).unwrap_or_else(|| near.len() + plain_length(far))
}

/// Where the first byte is that a JSON string cannot have as it is.
pub(crate) fn first_special(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let special = special_in(u64::from_le_bytes(*word));
        if special != 0 {
            return Some(8 * index + special.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(is_special).map(|at| 8 * words.len() + at)
}

/// As [`first_special`], for many bytes; their number if there is none.
fn plain_length(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    // No early end within a block: compilers make wide instructions of that.
    let has_special = |block: &[u8; BLOCK]| block.iter().fold(false, |found, byte| found | is_special(byte));
    let from = BLOCK * blocks.iter().position(has_special).unwrap_or(blocks.len());
    first_special(bytes.get(from..).unwrap_or_default()).map_or(bytes.len(), |at| from + at)
}

fn is_special(byte: &u8) -> bool {
    (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\')
}

/// The highest bit of each special byte of a word, up to the first one; what is above that means nothing.
fn special_in(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let difference = |byte: u8| word ^ (ONES * u64::from(byte));
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (zero(difference(b'"')) | zero(difference(b'\\')) | control) & HIGH
}

fn skip_escape(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'u' => bytes.get(at + 1..at + 5)?.iter().all(u8::is_ascii_hexdigit).then_some(at + 5),
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 1),
        _ => None,
    }
}

fn skip_word(bytes: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    bytes.get(at..)?.starts_with(word).then_some(at + word.len())
}

fn skip_number(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
    at = match bytes.get(at)? {
        b'0' => at + 1,
        _ => skip_digits(bytes, at)?,
    };
    if bytes.get(at) == Some(&b'.') {
        at = skip_digits(bytes, at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = skip_digits(bytes, at)?;
    }
    Some(at)
}

/// Over one digit or more.
fn skip_digits(bytes: &[u8], at: usize) -> Option<usize> {
    let count = bytes.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then_some(at + count)
}

/// Which brackets are open: a bit for each, set for an object.
#[derive(Default)]
struct Nesting {
    depth: usize,
    /// The innermost, up to 64 of them.
    bits: u64,
    outer: Vec<u64>,
}

impl Nesting {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.bits = if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.pop().unwrap_or_default()
        } else {
            self.bits >> 1
        };
    }

    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }
}

#[cfg(test)]
mod tests;
