//! Versions, help, wrong command lines, and what runs other programs (points 1 to 5, 8 and 14).

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::{fs, path::Path};

use test_rig::{Answer, Rig, bin_dir};

use crate::person::{Person, check};

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
fn the_version_is_bare_however_it_is_asked_for() {
    let person = Person::new();
    for line in [&["--version"][..], &["-v"], &["--version", "--no-update-check"]] {
        let answer = person.iii(line);
        assert_eq!((answer.status, answer.stdout.as_str()), (0, format!("{VERSION}\n").as_str()), "{answer:?}");
        assert_eq!(answer.stderr, "", "{line:?}");
    }
}

#[test]
fn the_help_lists_the_commands_there_are() {
    let answer = Person::new().iii(&["--help"]);
    check(&answer, 0, &["trigger", "worker", "project", "console", "cloud", "update"], &[]);
    let starts = |line: &str| line.trim_start().starts_with("start");
    assert!(!answer.stdout.lines().any(starts), "{answer:?}");
}

#[test]
fn a_removed_command_is_a_usage_error_that_names_its_replacement() {
    let person = Person::new();
    for (line, replacement) in [
        (&["start"][..], "`iii` without a command"),
        (&["sandbox", "run", "python"], "iii worker sandbox"),
        (&["install", "x"], "iii worker add"),
        (&["uninstall", "x"], "iii worker remove"),
        (&["list"], "iii worker list"),
        (&["info"], "iii worker status"),
        (&["create"], "iii project init"),
        (&["trigger", "x", "--function-id", "y"], "iii trigger billing::total"),
        (&["trigger", "x", "--payload", "{}"], "--json"),
    ] {
        check(&person.iii(line), 2, &[], &["error: ", "hint: ", replacement]);
    }
    let old = person.home().join("iii-cli");
    symlink(bin_dir().join("iii"), &old).expect("a link");
    check(&Answer::of(&mut person.command_of(&old, &["--version"])), 2, &[], &["hint: call it `iii`"]);
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let person = Person::new();
    for line in [
        &["bogus"][..],
        &["--bogus"],
        &["serve"],
        &["--config", "a.yaml", "--use-default-config"],
        &["worker", "remove"],
        &["worker", "info"],
        &["project", "bogus"],
        &["update", "console", "--list-targets"],
        &["completions", "tcsh"],
    ] {
        check(&person.iii(line), 2, &[], &["error: "]);
    }
}

#[test]
fn an_engine_without_a_configuration_names_the_file_and_the_way_out() {
    check(&Person::new().iii(&[]), 1, &[], &["error: ", "config.yaml", "--use-default-config"]);
}

#[test]
fn workers_are_listed_in_a_folder_that_has_none() {
    let rig = Rig::builder().start();
    let answer = rig.iii(&["worker", "list", "--port", &rig.port().to_string()]);
    check(&answer, 0, &[], &["NAME", "TYPE", "STATUS", "iii-worker-manager"]);
}

#[test]
fn an_absent_program_is_not_installed_unasked() {
    let person = Person::new();
    for name in ["console", "cloud"] {
        let command = format!("`iii update {name}`");
        check(&person.iii(&[name, "--help"]), 1, &[], &["error: ", &format!("iii-{name}"), &command]);
    }
}

/// Prints its arguments and its place, and ends with status 7.
fn place_console(folder: &Path) {
    let program = folder.join("iii-console");
    fs::create_dir_all(folder).expect("a folder for programs");
    fs::write(&program, "#!/bin/sh\necho \"$0 with $*\"\nexit 7\n").expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("an executable program");
}

#[test]
fn the_console_gets_its_arguments_untouched_and_its_status_is_ours() {
    let person = Person::new();
    let elsewhere = person.home().join("elsewhere");
    place_console(&elsewhere);
    let mut command = person.command(&["console", "--help", "-p", "3113", "--", "x"]);
    let answer = Answer::of(command.env("PATH", format!("{}:/usr/bin:/bin", elsewhere.display())));
    let said = format!("{} with --help -p 3113 -- x", elsewhere.join("iii-console").display());
    check(&answer, 7, &[&said], &[]);
    place_console(&person.programs());
    let own = person.programs().join("iii-console").display().to_string();
    check(&Answer::of(&mut command), 7, &[&own], &[]);
}

#[test]
fn completions_are_scripts_for_their_shells() {
    let person = Person::new();
    for (shell, part) in [("bash", "complete -F _iii"), ("zsh", "#compdef iii"), ("fish", "complete -c iii")] {
        check(&person.iii(&["completions", shell]), 0, &[part, "trigger"], &[]);
    }
    let script = person.folder().join("iii.bash");
    fs::write(&script, person.iii(&["completions", "bash"]).stdout).expect("a script");
    let line = format!(
        "source {}; COMP_WORDS=(iii upd); COMP_CWORD=1; _iii iii upd iii; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let answer = Answer::of(Command::new("bash").args(["--norc", "-c", &line]));
    assert_eq!(answer.stdout, "update\n", "{answer:?}");
}
