//! What a caller may say about a command, in its several shapes.

use std::collections::BTreeMap;

use base64::Engine as _;
use daemon_api::SandboxError;
use daemon_api::sandbox::Env;

/// One of three shapes becomes a command line: `argv`; `cmd` with `args`; `cmd` as a line of words.
pub(crate) fn argv(
    argv: Option<&[String]>,
    cmd: Option<&str>,
    args: Option<&[String]>,
) -> Result<Vec<String>, SandboxError> {
    let argv = argv.filter(|argv| !argv.is_empty());
    let cmd = cmd.filter(|cmd| !cmd.trim().is_empty());
    let args = args.filter(|args| !args.is_empty());
    match (argv, cmd, args) {
        (Some(argv), None, None) => Ok(argv.to_vec()),
        (Some(_), ..) => Err(SandboxError::invalid("give `argv`, or `cmd` and `args`, not both")),
        (None, Some(cmd), Some(args)) => {
            if cmd.contains(char::is_whitespace) {
                let message = format!("`cmd` is `{cmd}`, which has white space, and `args` is given: use `argv`");
                return Err(SandboxError::invalid(message));
            }
            Ok(std::iter::once(cmd.to_owned()).chain(args.iter().cloned()).collect())
        }
        (None, Some(line), None) => shell_words::split(line)
            .map_err(|error| SandboxError::invalid(format!("`cmd` is `{line}`: {error}")))
            .and_then(|words| if words.is_empty() { Err(nothing()) } else { Ok(words) }),
        (None, None, _) => Err(nothing()),
    }
}

fn nothing() -> SandboxError {
    SandboxError::invalid(r#"no command: give `argv`, such as ["sh", "-c", "echo hello"]"#)
}

/// Both shapes of an environment, checked.
pub(crate) fn environment(env: Option<&Env>) -> Result<BTreeMap<String, String>, SandboxError> {
    let pairs: Vec<(String, String)> = match env {
        None => Vec::new(),
        Some(Env::Map(map)) => map.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        Some(Env::List(list)) => list
            .iter()
            .map(|entry| {
                let pair = entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                pair.ok_or_else(|| SandboxError::invalid(format!("env entry `{entry}` is not NAME=value")))
            })
            .collect::<Result<_, _>>()?,
    };
    for (name, value) in &pairs {
        let mut letters = name.chars();
        let good = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !good || value.contains('\0') {
            return Err(SandboxError::invalid(format!("env name `{name}` is not allowed, or its value has a NUL")));
        }
    }
    Ok(pairs.into_iter().collect())
}

pub(crate) fn stdin(stdin: Option<&str>) -> Result<Option<Vec<u8>>, SandboxError> {
    let decode = |text: &str| {
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| SandboxError::invalid(format!("`stdin` is not base64: {error}")))
    };
    stdin.filter(|text| !text.is_empty()).map(decode).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: (Option<&[&str]>, Option<&str>, Option<&[&str]>), wanted: Option<&[&str]>) {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (list, args) = (given.0.map(own), given.2.map(own));
        let found = argv(list.as_deref(), given.1, args.as_deref());
        assert_eq!(found.ok(), wanted.map(own), "{given:?}");
    }

    #[test]
    fn each_shape_is_a_command_and_each_mixture_is_refused() {
        check((Some(&["a", "b c"]), None, None), Some(&["a", "b c"]));
        check((None, Some("a"), Some(&["b c"])), Some(&["a", "b c"]));
        check((None, Some("a 'b c' d"), None), Some(&["a", "b c", "d"]));
        check((None, Some("a b"), Some(&["c"])), None);
        check((Some(&["a"]), Some("b"), None), None);
        check((None, Some("a 'b"), None), None);
        check((None, None, None), None);
        check((None, Some("  "), Some(&["b"])), None);
    }

    #[test]
    fn environment_names_are_those_of_a_shell() {
        for (entry, good) in
            [("A=1", true), ("_a9=x=y", true), ("9A=1", false), ("A-B=1", false), ("=1", false), ("A", false)]
        {
            assert_eq!(environment(Some(&Env::List(vec![entry.to_owned()]))).is_ok(), good, "{entry}");
        }
        let map = [("A/B".to_owned(), "1".to_owned())].into_iter().collect();
        assert!(environment(Some(&Env::Map(map))).is_err());
    }
}
