//! Somebody with a home and a folder of their own who types commands; no engine runs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use test_rig::{Answer, bin_dir};

pub(crate) struct Person {
    home: TempDir,
}

impl Person {
    pub(crate) fn new() -> Self {
        let home = TempDir::with_prefix("iii-person-").expect("a temporary folder");
        fs::create_dir(home.path().join("work")).expect("a folder to work in");
        Self { home }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where commands are typed.
    pub(crate) fn folder(&self) -> PathBuf {
        self.home().join("work")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.home().join(".local/share/iii/state.json")
    }

    pub(crate) fn programs(&self) -> PathBuf {
        self.home().join(".local/bin")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&bin_dir().join("iii"), arguments)
    }

    /// With nothing of ours in the environment.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder()).stdin(Stdio::null()).env_clear();
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("PATH", path).env("HOME", self.home()).env("III_BIN_DIR", bin_dir()).env("NO_COLOR", "1");
        command
    }

    pub(crate) fn iii(&self, arguments: &[&str]) -> Answer {
        Answer::of(&mut self.command(arguments))
    }

    pub(crate) fn iii_with(&self, name: &str, value: impl AsRef<OsStr>, arguments: &[&str]) -> Answer {
        Answer::of(self.command(arguments).env(name, value))
    }
}

/// As a table of a command's fate: its status, and what has to be in its output and errors.
#[track_caller]
pub(crate) fn check(answer: &Answer, status: i32, stdout: &[&str], stderr: &[&str]) {
    assert_eq!(answer.status, status, "{answer:?}");
    for (text, parts) in [(&answer.stdout, stdout), (&answer.stderr, stderr)] {
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing: {answer:?}");
        }
        assert!(!parts.is_empty() || text.is_empty(), "nothing is to be said there: {answer:?}");
    }
}
