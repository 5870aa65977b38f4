//! As `serde_json` sees it, on JSON, on what is nearly JSON, and on anything.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;

fn is_json(text: &str) -> bool {
    let bytes = text.as_bytes();
    skip_value(bytes, skip_space(bytes, 0)).is_some_and(|end| skip_space(bytes, end) == bytes.len())
}

fn check(text: &str) {
    let known = serde_json::from_str::<&RawValue>(text).is_ok();
    assert_eq!(is_json(text), known, "{}", text.chars().take(200).collect::<String>());
}

#[test]
fn the_grammar_is_kept_to_the_letter() {
    for text in [
        "",
        " ",
        "null",
        "nul",
        "nulll",
        "true",
        "tru",
        "false",
        "falsey",
        "0",
        "-0",
        "-",
        "+1",
        "00",
        "01",
        "-01",
        "1.",
        ".1",
        "1.0",
        "1.0.0",
        "1e",
        "1e5",
        "1E+5",
        "1e-",
        "1e-5",
        "1e+-5",
        "-1.50e+10",
        "1_0",
        "0x1",
        "NaN",
        "Infinity",
        "[]",
        "[ ]",
        "[,]",
        "[1,]",
        "[1 2]",
        "[1,2]",
        "[",
        "]",
        "[[]",
        "[]]",
        "{}",
        "{ }",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "{\"a\" : 1 , \"b\" : [ ] }",
        "[}",
        "{]",
        "{\"a\":1]",
        "[1}",
        "\"",
        "\"\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u00e4\"",
        "\"\\ud800\"",
        "\"\\",
        "\"\\u",
        "\"\n\"",
        "\"\t\"",
        "\"\u{7f}\"",
        "\"\u{0}\"",
        "\"ä€😀\"",
        "1 2",
        "{}{}",
        "\u{feff}{}",
        "\u{a0}1",
        "\u{c}1",
        "//",
        "/**/1",
    ] {
        check(text);
        check(&format!(" [ {text} ] "));
        check(&format!("{{\"a\":{text}\r\n\t}}"));
    }
}

#[test]
fn a_long_string_is_looked_at_everywhere() {
    for length in
        [7, 8, 9, NEAR - 1, NEAR, NEAR + 1, NEAR + BLOCK - 1, NEAR + BLOCK, NEAR + BLOCK + 1, NEAR + 3 * BLOCK + 5]
    {
        for odd in ["", "\"", "\\", "\\n", "\\u00e4", "\\u00", "\n", "\u{1f}", "ä"] {
            let plain = "x".repeat(length);
            check(&format!("\"{plain}{odd}\""));
            check(&format!("\"{plain}{odd}{plain}\""));
            check(&format!("[\"{odd}{plain}\"]"));
            check(&format!("\"{plain}{odd}"));
        }
    }
}

#[test]
fn nesting_has_no_limit() {
    for depth in [1, 63, 64, 65, 127, 128, 129, 100_000] {
        let open: String = (0..depth).map(|level| if level % 3 == 0 { "{\"a\":" } else { "[" }).collect();
        let close: String = (0..depth).rev().map(|level| if level % 3 == 0 { '}' } else { ']' }).collect();
        assert!(is_json(&format!("{open}1{close}")), "{depth}");
        assert!(!is_json(&format!("{open}1{}", &close[1..])), "{depth}");
        let wrong = close.replacen(['}', ']'], "!", depth / 2 + 1).replace('!', "]");
        check(&format!("{open}1{wrong}"));
    }
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<f64>().prop_map(|number| serde_json::json!(number).to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        ".{0,40}".prop_map(|text| serde_json::json!(text).to_string()),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" ,"))),
            prop::collection::vec(("[a-z\"\\\\]{0,20}", inner), 0..5).prop_map(|members| {
                let members: Vec<String> =
                    members.into_iter().map(|(name, value)| format!("{}: {value}", serde_json::json!(name))).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn all_json_passes(text in json()) {
        prop_assert!(is_json(&text), "{text}");
    }

    /// One character of JSON is another, missing, or doubled.
    #[test]
    fn what_is_nearly_json_is_judged_alike(
        text in json(), at in any::<prop::sample::Index>(), way in 0..3, other in "[\\[\\]{}:,\"\\\\u0-9eE.+ \n\u{1}-]",
    ) {
        let mut characters: Vec<char> = text.chars().collect();
        let at = at.index(characters.len());
        match way {
            0 => characters[at] = other.chars().next().expect("one"),
            1 => { characters.remove(at); }
            _ => characters.insert(at, characters[at]),
        }
        let text: String = characters.into_iter().collect();
        prop_assert_eq!(is_json(&text), serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn soup_is_judged_alike(text in r#"[\[\]{},:"\\untrefalsbd0-9eE.+ \n-]{0,30}"#) {
        prop_assert_eq!(is_json(&text), serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0..200_usize) {
        let _ = skip_value(&bytes, at);
    }
}
