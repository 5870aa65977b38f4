//! Patterns with `*` and `?`, as sampling rules and collapse rules have them.

/// Whether all of `text` is what `pattern` says: `*` is any text, `?` any one letter. Takes at most the product of both
/// lengths.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` stands, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                seen = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards_stand_for_any_text_and_any_letter() {
        for (pattern, text) in [("api.*", "api.users"), ("*", ""), ("h?llo", "héllo"), ("a*b*c", "axxbyyc"), ("", "")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("api.*", "api"), ("?", ""), ("a*c", "ab"), ("", "x"), ("health", "healthz")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    fn simple(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| simple(rest, &text[taken..])),
            Some((letter, rest)) => text
                .split_first()
                .is_some_and(|(first, more)| (*letter == '?' || letter == first) && simple(rest, more)),
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_trying_everything(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let (letters, of): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&pattern, &text), simple(&letters, &of));
        }
    }
}
