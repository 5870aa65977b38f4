//! What to type instead of a command line that older versions had.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A program name of older versions.
const OLD_NAME: &str = "iii-cli";

/// What stands before a command and is one of ours: a removed word after it is not meant as a command of the top level.
const GROUPS: [&str; 8] = ["trigger", "worker", "project", "console", "cloud", "update", "doctor", "completions"];

/// A complaint about the name by which we were called.
pub(crate) fn program(called: &str) -> Option<&'static str> {
    let name = called.rsplit('/').next().unwrap_or(called);
    (name == OLD_NAME).then_some("call it `iii`: the commands are those that `iii --help` lists")
}

/// The replacement, where `error` is about something that was removed. `words`: the command line after the program.
pub(crate) fn replacement(error: &clap::Error, words: &[String]) -> Option<String> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let wrong = said(ContextKind::InvalidSubcommand)?;
            let first = words.iter().find(|word| *word == wrong || GROUPS.contains(&word.as_str()))?;
            (first == wrong).then(|| command(wrong)).flatten()
        }
        ErrorKind::UnknownArgument if words.iter().any(|word| word == "trigger") => {
            match said(ContextKind::InvalidArg)?.split('=').next()? {
                "--function-id" => Some("the function comes first: `iii trigger billing::total year=2026`".into()),
                "--payload" => Some("use `key=value` fields, or `--json`".into()),
                _ => None,
            }
        }
        _ => None,
    }
}

fn command(word: &str) -> Option<String> {
    let replacement = match word {
        "start" | "serve" => "`iii` without a command starts the engine",
        "sandbox" => "use `iii worker sandbox …`, or `iii trigger sandbox::run image=python code='print(1)'`",
        "install" | "add" => "use `iii worker add`",
        "uninstall" | "remove" => "use `iii worker remove`",
        "info" | "status" => "use `iii worker status`",
        "list" => "use `iii worker list`",
        "logs" => "use `iii worker logs`",
        "exec" => "use `iii worker exec`",
        "create" => "use `iii project init`",
        _ => return None,
    };
    Some(replacement.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use clap::Parser;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let parsed = Arguments::try_parse_from(std::iter::once("iii".to_owned()).chain(words.clone()));
        let error = parsed.err().unwrap_or_else(|| panic!("{line} is accepted"));
        let hint = replacement(&error, &words).unwrap_or_default();
        assert!(hint.contains(expected) && hint.is_empty() == expected.is_empty(), "{line}: {hint:?}");
    }

    #[test]
    fn a_removed_command_line_has_a_replacement() {
        check("start", "without a command");
        check("sandbox run python", "worker sandbox");
        check("install x", "worker add");
        check("uninstall x", "worker remove");
        check("list", "worker list");
        check("info x", "worker status");
        check("create shop", "project init");
        check("trigger x --function-id y", "comes first");
        check("trigger --payload={} x", "--json");
    }

    #[test]
    fn what_never_was_a_command_has_none() {
        check("bogus", "");
        check("worker info", "");
        check("worker sandbox start", "");
        check("trigger x --no-such", "");
        check("--payload", "");
    }

    #[test]
    fn the_old_name_of_the_program_is_told() {
        assert!(program("/usr/bin/iii-cli").is_some());
        assert!(program("iii").is_none() && program("/iii-cli/iii").is_none());
    }

    #[test]
    fn the_groups_are_those_there_are() {
        use clap::CommandFactory;
        let command = Arguments::command();
        let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, GROUPS);
    }
}
