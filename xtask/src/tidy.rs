//! Checks on the shape of the code: file headers and sizes, names, the arrows between crates, documented error codes.
//!
//! [`ARROWS`] is the drawing in `ARCHITECTURE.md`, written down a second time: change both together. A crate may also
//! use what its arrows lead to by way of another crate. Development dependencies are free.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate that is not a test, and where its arrows point.
const ARROWS: [(&str, &[&str]); 32] = [
    ("builtin-bridge", &["engine-builtin", "engine-client"]),
    ("builtin-configuration", &["engine-builtin", "engine-client"]),
    ("builtin-cron", &["engine-builtin", "engine-store"]),
    ("builtin-exec", &["engine-builtin"]),
    ("builtin-http", &["engine-builtin"]),
    ("builtin-http-functions", &["engine-builtin"]),
    ("builtin-observability", &["engine-builtin"]),
    ("builtin-pubsub", &["engine-builtin"]),
    ("builtin-queue", &["engine-builtin", "engine-client", "engine-store"]),
    ("builtin-state", &["engine-builtin", "engine-client", "engine-store", "engine-updates"]),
    ("builtin-stream", &["engine-builtin", "engine-client", "engine-store", "engine-updates"]),
    ("cli", &["engine-client", "daemon-api"]),
    ("daemon", &["engine-client", "daemon-api", "guest-client", "oci", "vmm"]),
    ("daemon-api", &["engine-protocol"]),
    (
        "engine",
        &[
            "engine-router",
            "engine-builtin",
            "builtin-bridge",
            "builtin-configuration",
            "builtin-cron",
            "builtin-exec",
            "builtin-http",
            "builtin-http-functions",
            "builtin-observability",
            "builtin-pubsub",
            "builtin-queue",
            "builtin-state",
            "builtin-stream",
        ],
    ),
    ("engine-builtin", &["engine-protocol"]),
    ("engine-client", &["engine-protocol"]),
    ("engine-protocol", &[]),
    ("engine-router", &["engine-protocol"]),
    ("engine-store", &[]),
    ("engine-updates", &[]),
    ("guest-client", &["guest-protocol"]),
    ("guest-init", &["guest-protocol"]),
    ("guest-protocol", &[]),
    ("oci", &[]),
    ("relay", &[]),
    ("vm-process", &["vmm", "vmm-host", "vmm-krun", "vmm-qemu", "relay"]),
    ("vmm", &[]),
    ("vmm-host", &["vmm"]),
    ("vmm-krun", &["vmm", "vmm-host"]),
    ("vmm-qemu", &["vmm", "vmm-host"]),
    ("xtask", &[]),
];

/// May depend on anything; nothing else may depend on them.
const TESTS: [&str; 7] = ["bench", "conformance", "fuzz", "guest-tests", "load", "scenarios", "test-rig"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["common", "helper", "helpers", "util", "utils"];

/// Macros of unfinished work.
const UNFINISHED: [&str; 3] = ["dbg", "todo", "unimplemented"];

const MAX_LINES: usize = 1000;

const ERROR_CODES: &str = "daemon/daemon-api/src/sandbox_error.rs";
const ERROR_DOCS: &str = "docs/sandbox-errors.md";

#[derive(Debug, thiserror::Error)]
pub(crate) enum TidyError {
    #[error("could not run `{program}`")]
    Run { program: &'static str, source: io::Error },
    #[error("`{program}` failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("the workspace's description is not understood")]
    Description { source: serde_json::Error },
    #[error("could not read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the code is out of shape:\n  {}", complaints.join("\n  "))]
    OutOfShape { complaints: Vec<String> },
}

/// Checks the workspace around the current folder.
///
/// # Errors
/// [`TidyError::OutOfShape`] with every complaint; otherwise what could not be looked at.
pub(crate) fn check() -> Result<(), TidyError> {
    let workspace = describe()?;
    let root = Path::new(workspace["workspace_root"].as_str().unwrap_or("."));
    let mut complaints = misplaced_arrows(&workspace);
    for path in sources(root)? {
        let text = read(&root.join(&path))?;
        complaints.extend(in_source(&path, &text));
    }
    complaints.extend(undocumented_codes(&read(&root.join(ERROR_CODES))?, &read(&root.join(ERROR_DOCS))?));
    if complaints.is_empty() { Ok(()) } else { Err(TidyError::OutOfShape { complaints }) }
}

/// What is wrong with one file.
fn in_source(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display();
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push(format!("{shown}: does not start with a `//!` line that says what it is"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{shown}: has {lines} lines; at most {MAX_LINES} are readable"));
    }
    let parts = path.with_extension("");
    for name in parts.iter().filter_map(|part| part.to_str()).filter(|part| EMPTY_NAMES.contains(part)) {
        complaints.push(format!("{shown}: `{name}` says nothing about what is inside"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(name) = module(line).filter(|name| EMPTY_NAMES.contains(name)) {
            complaints.push(format!("{shown}:{number}: module `{name}` says nothing about what is inside"));
        }
        for name in UNFINISHED.into_iter().filter(|name| calls(line, name)) {
            complaints.push(format!("{shown}:{number}: `{name}!` is unfinished work"));
        }
    }
    complaints
}

/// The module that a line declares.
fn module(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (before, after) = line.strip_prefix("mod ").map(|after| ("", after)).or_else(|| line.split_once(" mod "))?;
    let declared = before.is_empty() || (before.starts_with("pub") && !before.contains(';'));
    declared.then(|| after.split([' ', ';', '{']).next().unwrap_or_default())
}

/// Whether a line has the macro, and not one whose name merely ends like it.
fn calls(line: &str, name: &str) -> bool {
    let call = format!("{name}!");
    line.match_indices(&call)
        .any(|(at, _)| !line[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_'))
}

/// Dependencies between our crates that are not in the drawing.
fn misplaced_arrows(workspace: &Value) -> Vec<String> {
    let packages = || workspace["packages"].as_array().into_iter().flatten();
    let names: BTreeSet<&str> = packages().filter_map(|package| package["name"].as_str()).collect();
    let mut complaints = Vec::new();
    for package in packages() {
        let from = package["name"].as_str().unwrap_or_default();
        if TESTS.contains(&from) {
            continue;
        }
        if !ARROWS.iter().any(|(name, _)| *name == from) {
            complaints.push(format!("crate `{from}` is not in the drawing of ARCHITECTURE.md"));
            continue;
        }
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let in_use = dependencies.filter(|dependency| dependency["kind"] != "dev");
        for to in in_use.filter_map(|dependency| dependency["name"].as_str()).filter(|to| names.contains(to)) {
            if !leads_to(from, to) {
                complaints
                    .push(format!("`{from}` depends on `{to}`: ARCHITECTURE.md has no arrow from one to the other"));
            }
        }
    }
    complaints
}

fn leads_to(from: &str, to: &str) -> bool {
    let arrows = ARROWS.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, arrows)| arrows);
    arrows.iter().any(|next| *next == to || leads_to(next, to))
}

/// Codes without a section, and sections without a code. A section's heading is its code alone, since links to it are
/// made from the code.
fn undocumented_codes(source: &str, docs: &str) -> Vec<String> {
    let codes: BTreeSet<&str> = source.split('"').filter(|text| is_code(text)).collect();
    let sections: BTreeSet<&str> = docs.lines().filter_map(|line| line.strip_prefix("## ")).map(str::trim).collect();
    let missing = codes.difference(&sections).map(|code| format!("{ERROR_DOCS}: has no section `## {code}`"));
    let stale = sections.difference(&codes).map(|section| format!("{ERROR_DOCS}: `## {section}` is no code"));
    let none = codes.is_empty().then(|| format!("{ERROR_CODES}: holds no code"));
    missing.chain(stale).chain(none).collect()
}

fn is_code(text: &str) -> bool {
    matches!(text.as_bytes(), [b'S', digits @ ..] if digits.len() == 3 && digits.iter().all(u8::is_ascii_digit))
}

fn describe() -> Result<Value, TidyError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let said = output("cargo metadata", &mut command)?;
    serde_json::from_slice(&said).map_err(|source| TidyError::Description { source })
}

/// The Rust files that belong to the project, below `root`: those git knows, or all where there is no repository.
fn sources(root: &Path) -> Result<Vec<PathBuf>, TidyError> {
    if !root.join(".git").exists() {
        return walk(root);
    }
    let mut command = Command::new("git");
    // In a container the tree often belongs to somebody else.
    command.args(["-c", "safe.directory=*", "ls-files", "-z", "*.rs"]).current_dir(root);
    let said = String::from_utf8_lossy(&output("git ls-files", &mut command)?).into_owned();
    let known = said.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    // A file may be deleted already, and git not told yet.
    Ok(known.filter(|path| root.join(path).exists()).collect())
}

fn walk(root: &Path) -> Result<Vec<PathBuf>, TidyError> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|source| TidyError::File { path: folder.clone(), source })?;
        for entry in entries.flatten() {
            let name: OsString = entry.file_name();
            let hidden = name.to_string_lossy().starts_with('.');
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !hidden && name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    Ok(found)
}

fn output(program: &'static str, command: &mut Command) -> Result<Vec<u8>, TidyError> {
    let output = command.output().map_err(|source| TidyError::Run { program, source })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(TidyError::Failed { program, said })
    }
}

fn read(path: &Path) -> Result<String, TidyError> {
    fs::read_to_string(path).map_err(|source| TidyError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_code_is_in_shape() {
        if let Err(error) = check() {
            panic!("{error}");
        }
    }

    fn is_rust(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "rs")
    }

    #[test]
    fn without_a_repository_the_same_files_are_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let found = walk(root).unwrap();
        let committed = sources(root).unwrap();
        assert!(committed.contains(&PathBuf::from("xtask/src/tidy.rs")));
        for path in committed.iter().filter(|path| is_rust(path) && root.join(path).exists()) {
            assert!(found.contains(path), "{}", path.display());
        }
    }

    #[track_caller]
    fn check_source(path: &str, text: &str, complaints: &[&str]) {
        assert_eq!(in_source(Path::new(path), text), complaints);
    }

    #[test]
    fn a_file_says_what_it_is() {
        check_source("a/src/lib.rs", "//! Adds.\n", &[]);
        let complaint = "a/src/lib.rs: does not start with a `//!` line that says what it is";
        check_source("a/src/lib.rs", "use std::fs;\n//! Adds.\n", &[complaint]);
        check_source("a/src/lib.rs", "", &[complaint]);
    }

    #[test]
    fn a_file_has_an_end() {
        let text = |lines| format!("//! Long.\n{}", "\n".repeat(lines - 1));
        check_source("a.rs", &text(MAX_LINES), &[]);
        check_source("a.rs", &text(MAX_LINES + 1), &["a.rs: has 1001 lines; at most 1000 are readable"]);
    }

    #[test]
    fn a_name_says_something() {
        check_source("a/uncommon.rs", "//! A.\nmod commonly;\n// mod utils are bad\n", &[]);
        check_source("a/utils.rs", "//! A.\n", &["a/utils.rs: `utils` says nothing about what is inside"]);
        check_source("a/common/mod.rs", "//! A.\n", &["a/common/mod.rs: `common` says nothing about what is inside"]);
        for declaration in ["mod helpers;", "pub(crate) mod helpers {", "    pub(in crate::a) mod helpers {}"] {
            let complaint = "a.rs:2: module `helpers` says nothing about what is inside";
            check_source("a.rs", &format!("//! A.\n{declaration}\n"), &[complaint]);
        }
    }

    #[test]
    fn nothing_is_left_unfinished() {
        for name in UNFINISHED {
            let complaint = format!("a.rs:2: `{name}!` is unfinished work");
            check_source("a.rs", &format!("//! A.\n    let a = {name}!(b);\n"), &[&complaint]);
            check_source("a.rs", &format!("//! A.\n    let a = my_{name}!(b);\n"), &[]);
        }
    }

    fn workspace(from: &str, kind: &Value, to: &str) -> Value {
        let names = ARROWS.iter().map(|(name, _)| *name).chain(TESTS).chain([from]).collect::<BTreeSet<_>>();
        let packages = names.into_iter().map(|name| {
            let dependency = json!({ "name": to, "kind": kind });
            let dependencies = if name == from { vec![dependency] } else { Vec::new() };
            json!({ "name": name, "dependencies": dependencies })
        });
        json!({ "packages": packages.collect::<Vec<_>>() })
    }

    #[track_caller]
    fn check_arrow(from: &str, to: &str, allowed: bool) {
        let complaint = format!("`{from}` depends on `{to}`: ARCHITECTURE.md has no arrow from one to the other");
        let expected = if allowed { Vec::new() } else { vec![complaint] };
        assert_eq!(misplaced_arrows(&workspace(from, &Value::Null, to)), expected);
    }

    #[test]
    fn only_drawn_arrows_are_allowed() {
        check_arrow("cli", "daemon-api", true);
        check_arrow("vm-process", "vmm", true);
        check_arrow("engine", "serde", true);
        for (from, to) in [
            ("cli", "daemon"),
            ("cli", "guest-client"),
            ("daemon", "relay"),
            ("daemon", "vmm-qemu"),
            ("daemon", "engine"),
            ("engine-protocol", "engine-router"),
            ("engine-router", "daemon-api"),
            ("guest-init", "guest-client"),
            ("relay", "vmm"),
            ("vmm", "vmm-qemu"),
            ("oci", "test-rig"),
            ("xtask", "vmm"),
        ] {
            check_arrow(from, to, false);
        }
    }

    #[test]
    fn an_arrow_may_be_followed_further() {
        check_arrow("cli", "engine-protocol", true);
        check_arrow("daemon", "guest-protocol", true);
        check_arrow("engine", "engine-protocol", true);
    }

    #[test]
    fn building_counts_as_using_and_testing_does_not() {
        assert_eq!(misplaced_arrows(&workspace("relay", &json!("build"), "vmm")).len(), 1);
        assert!(misplaced_arrows(&workspace("relay", &json!("dev"), "vmm")).is_empty());
        check_arrow("scenarios", "engine", true);
    }

    #[test]
    fn a_crate_nobody_drew_is_refused() {
        let complaints = misplaced_arrows(&workspace("attic", &Value::Null, "vmm"));
        assert_eq!(complaints, ["crate `attic` is not in the drawing of ARCHITECTURE.md"]);
    }

    #[test]
    fn every_code_has_its_section_and_every_section_its_code() {
        let source = r#"A => "S001", B => "S211", c => "S12", d => "S2110""#;
        assert!(undocumented_codes(source, "# Errors\n\n## S001\ntext\n## S211\n### more\n").is_empty());
        assert_eq!(undocumented_codes(source, "## S001: bad\n## S211\n").len(), 2);
        assert_eq!(undocumented_codes(source, "## S001\n"), ["docs/sandbox-errors.md: has no section `## S211`"]);
        assert_eq!(undocumented_codes("", "").len(), 1);
    }
}
