//! Keys of several parts that sort part by part.

/// Joins parts into one key: those of equal first parts lie together, and no part can be made to look like two.
#[must_use]
pub fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len() + 2).sum());
    for part in parts {
        for byte in *part {
            key.push(*byte);
            if *byte == 0 {
                key.push(0xff);
            }
        }
        key.extend([0, 0]);
    }
    key
}

/// The first part of a key that [`key`] has made.
#[must_use]
pub fn first_part(key: &[u8]) -> Option<Vec<u8>> {
    let mut part = Vec::new();
    let mut bytes = key.iter();
    loop {
        match (*bytes.next()?, bytes.as_slice().first()) {
            (0, Some(0xff)) => {
                part.push(0);
                bytes.next();
            }
            (0, Some(0)) => return Some(part),
            (0, _) => return None,
            (byte, _) => part.push(byte),
        }
    }
}

/// The first key behind all that begin with `prefix`; `None` when there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_sort_like_their_parts(
            one in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 1..4),
            other in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 1..4),
        ) {
            let joined = |parts: &[Vec<u8>]| key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(joined(&one).cmp(&joined(&other)), one.cmp(&other));
        }

        #[test]
        fn the_first_part_is_found_again(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 1..4)) {
            let joined = key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let first = first_part(&joined);
            prop_assert_eq!(first.as_ref(), parts.first());
        }

        #[test]
        fn a_prefix_ends_behind_its_keys(prefix in prop::collection::vec(any::<u8>(), 0..4), rest in prop::collection::vec(any::<u8>(), 0..4)) {
            let longer = [prefix.clone(), rest].concat();
            if let Some(end) = prefix_end(&prefix) {
                prop_assert!(longer < end);
                prop_assert!(end > prefix);
            }
        }
    }
}
