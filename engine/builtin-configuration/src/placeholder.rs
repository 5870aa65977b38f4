//! `${NAME}` and `${NAME:default}` in a text.

use std::borrow::Cow;

/// A place in a text where a variable's value belongs.
#[derive(Debug)]
pub struct Placeholder<'a> {
    /// All of it, braces included.
    pub written: &'a str,
    /// Where it begins in the text, in bytes.
    pub at: usize,
    pub name: &'a str,
    pub default: Option<&'a str>,
}

/// `text` with each placeholder replaced by what `value` says. Anything else stays, an unclosed `${` too.
///
/// # Errors
/// The first one of `value`.
pub fn replace_placeholders<'a, E>(
    text: &'a str,
    mut value: impl FnMut(Placeholder<'a>) -> Result<Cow<'a, str>, E>,
) -> Result<String, E> {
    let mut replaced = String::with_capacity(text.len());
    let mut done = 0;
    while let Some(start) = text[done..].find("${").map(|start| done + start) {
        let Some(end) = text[start..].find('}').map(|end| start + end) else { break };
        let inside = &text[start + 2..end];
        let (name, default) = match inside.split_once(':') {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        replaced.push_str(&text[done..start]);
        replaced.push_str(&value(Placeholder { written: &text[start..=end], at: start, name, default })?);
        done = end + 1;
    }
    replaced.push_str(&text[done..]);
    Ok(replaced)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_placeholder_has_a_name_and_perhaps_a_default() {
        let mut seen = Vec::new();
        let replaced = replace_placeholders::<Infallible>("ä: ${A} $X ${B:c:d}${E:} {${ ${", |found| {
            seen.push((found.at, found.written, found.name, found.default));
            Ok(Cow::Borrowed("-"))
        });
        assert_eq!(replaced, Ok("ä: - $X -- {${ ${".to_owned()));
        let wanted = [(4, "${A}", "A", None), (12, "${B:c:d}", "B", Some("c:d")), (20, "${E:}", "E", Some(""))];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn what_cannot_be_replaced_ends_it() {
        let failed =
            replace_placeholders("${A}${B}${C}", |found| if found.name == "B" { Err(found.at) } else { Ok("".into()) });
        assert_eq!(failed, Err(4));
    }

    proptest! {
        #[test]
        fn nothing_but_placeholders_changes(text in "([${}:aä]|\\$\\{|\n){0,40}") {
            let replaced = replace_placeholders::<Infallible>(&text, |found| {
                assert_eq!(&text[found.at..][..found.written.len()], found.written);
                Ok(Cow::Borrowed(found.written))
            });
            prop_assert_eq!(replaced, Ok(text));
        }
    }
}
