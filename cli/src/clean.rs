//! Makes text from elsewhere safe for a terminal.

/// Without control characters (line ends and tabs stay), bidirectional overrides and line separators.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !is_hostile(*c)).collect()
}

/// As [`clean`], on one line.
pub(crate) fn line(text: &str) -> String {
    clean(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_or_turns_text_around_is_gone() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\u{2028}d\ne\tf\r"), "a[2Jbcd\ne\tf");
        assert_eq!(line(" a\n b\t\tc "), "a b c");
    }
}
