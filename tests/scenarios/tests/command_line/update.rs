//! `iii update` against a server of releases on loopback (point 15).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use test_rig::{Answer, bin_dir, eventually, kill};

use crate::file_server::{File, FileServer};
use crate::person::{Person, check};

const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody.
const OTHER_USER: u32 = 65534;

fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// An archive with a script for each name, which tells its version and ends with status 7.
fn archive(names: &[&str], version: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for name in names {
        let body = format!("#!/bin/sh\necho {name} {version} \"$@\"\nexit 7\n");
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, body.as_bytes()).expect("an entry");
    }
    tar.into_inner().and_then(GzEncoder::finish).expect("an archive")
}

fn path_of(program: &str, version: &str) -> String {
    format!("{program}/{version}/{program}-{}.tar.gz", platform())
}

/// Publishes the files, not the index.
fn put_release(server: &FileServer, program: &str, version: &str, archive: Vec<u8>) {
    let digest: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = path_of(program, version);
    let checksum = format!("{digest}  {program}-{}.tar.gz\n", platform());
    server.put(&format!("{path}.sha256"), File::Whole(checksum.into_bytes()));
    server.put(&path, File::Whole(archive));
}

fn put_index(server: &FileServer, programs: &[(&str, &str)]) {
    let entry = |(name, version): &(&str, &str)| {
        ((*name).to_owned(), json!({ "version": version, "targets": [platform(), "riscv64-unknown-linux-gnu"] }))
    };
    let programs: serde_json::Map<String, Value> = programs.iter().map(entry).collect();
    server.put("index.json", File::Whole(json!({ "programs": programs }).to_string().into_bytes()));
}

/// A server with this version of the console.
fn with_console(version: &str) -> FileServer {
    let server = FileServer::start();
    publish_console(&server, version);
    server
}

fn publish_console(server: &FileServer, version: &str) {
    put_release(server, "iii-console", version, archive(&["iii-console"], version));
    put_index(server, &[("iii-console", version)]);
}

impl Person {
    fn update(&self, server: &FileServer, words: &[&str]) -> Answer {
        Answer::of(&mut self.update_command(server, words))
    }

    fn update_command(&self, server: &FileServer, words: &[&str]) -> Command {
        let mut command = self.command(&[&["update"], words].concat());
        command.env("III_UPDATE_URL", server.url());
        command
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.state_file()).expect("state.json")).expect("JSON")
    }

    #[track_caller]
    fn has_console(&self, version: &str) {
        check(&self.iii(&["console", "x"]), 7, &[&format!("iii-console {version} x\n")], &[]);
        let names = fs::read_dir(self.programs()).expect("programs").count();
        assert_eq!(names, 1, "nothing else is left there");
    }
}

#[test]
fn targets_are_listed_without_an_address() {
    let answer = Person::new().iii(&["update", "--list-targets"]);
    assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{answer:?}");
    for target in ["self", "console", "cloud", "worker"] {
        assert!(answer.stdout.lines().any(|line| line == target), "{answer:?}");
    }
}

#[test]
fn an_unknown_target_is_refused_before_anything_is_asked() {
    let server = FileServer::start();
    let answer = Person::new().update(&server, &["bogus"]);
    check(&answer, 1, &[], &["error: ", "bogus", "--list-targets"]);
    assert!(server.requests().is_empty());
}

#[test]
fn without_an_address_it_says_how_to_set_one() {
    let person = Person::new();
    check(&person.iii(&["update"]), 1, &[], &["error: ", "hint: set III_UPDATE_URL", "--url"]);
    check(&person.iii_with("III_UPDATE_URL", "", &["update"]), 1, &[], &["III_UPDATE_URL"]);
    let answer = person.iii_with("III_UPDATE_URL", "http://releases.invalid/", &["update"]);
    check(&answer, 1, &[], &["error: ", "https://"]);
}

#[test]
fn a_program_is_installed_then_left_alone_then_updated() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    let answer = person.update(&server, &["console"]);
    check(&answer, 0, &[], &["checking iii-console", "iii-console: installed v0.20.0"]);
    person.has_console("0.20.0");
    let state = person.state();
    assert_eq!(state["binaries"]["iii-console"]["version"], "0.20.0", "{state}");
    assert_eq!(state["binaries"]["iii-console"]["asset_name"], format!("iii-console-{}.tar.gz", platform()));
    let installed_at = state["binaries"]["iii-console"]["installed_at"].as_str().expect("a time");
    assert!(installed_at.ends_with('Z') && state["last_update_check"].is_string(), "{state}");

    let asked = server.requests().len();
    check(&person.update(&server, &["console"]), 0, &[], &["iii-console: already up to date (0.20.0)"]);
    assert_eq!(server.requests().len(), asked + 1, "only the index was read");

    publish_console(&server, "0.21.0");
    check(&person.update(&server, &["console"]), 0, &[], &["iii-console: updated 0.20.0 → 0.21.0"]);
    person.has_console("0.21.0");
    publish_console(&server, "0.20.0");
    check(&person.update(&server, &["console"]), 0, &[], &["already up to date (0.21.0)"]);
    person.has_console("0.21.0");
}

#[test]
fn the_address_may_be_given_on_the_command_line() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.iii(&["update", "console", "--url", &server.url()]), 0, &[], &["installed v0.20.0"]);
}

#[test]
fn a_damaged_archive_replaces_nothing() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    publish_console(&server, "0.21.0");
    let mut damaged = archive(&["iii-console"], "0.21.0");
    *damaged.last_mut().expect("a byte") ^= 1;
    server.put(&path_of("iii-console", "0.21.0"), File::Whole(damaged));
    check(&person.update(&server, &["console"]), 1, &[], &["error: ", "is damaged", "nothing was replaced"]);
    person.has_console("0.20.0");
    for checksum in ["", "not a digest", &format!("{}  another.tar.gz", "0".repeat(64))] {
        let path = format!("{}.sha256", path_of("iii-console", "0.21.0"));
        server.put(&path, File::Whole(checksum.as_bytes().to_vec()));
        check(&person.update(&server, &["console"]), 1, &[], &["error: ", "holds no SHA-256"]);
    }
    person.has_console("0.20.0");
    assert_eq!(person.state()["binaries"]["iii-console"]["version"], "0.20.0");
}

#[test]
fn an_archive_without_the_program_replaces_nothing() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    publish_console(&server, "0.21.0");
    put_release(&server, "iii-console", "0.21.0", archive(&["README", "bin/iii-console"], "0.21.0"));
    check(&person.update(&server, &["console"]), 1, &[], &["error: ", "holds no file `iii-console`"]);
    put_release(&server, "iii-console", "0.21.0", b"<html>".to_vec());
    check(&person.update(&server, &["console"]), 1, &[], &["error: ", "cannot be unpacked"]);
    person.has_console("0.20.0");
}

#[test]
fn a_download_that_breaks_off_replaces_nothing_and_the_next_one_works() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    publish_console(&server, "0.21.0");
    let path = path_of("iii-console", "0.21.0");
    server.put(&path, File::Cut(archive(&["iii-console"], "0.21.0")));
    check(&person.update(&server, &["console"]), 1, &[], &["error: could not download", &path]);
    person.has_console("0.20.0");
    publish_console(&server, "0.21.0");
    check(&person.update(&server, &["console"]), 0, &[], &["updated 0.20.0 → 0.21.0"]);
    person.has_console("0.21.0");
}

/// An update that is in the middle of its download.
fn stalled(person: &Person, server: &FileServer) -> Child {
    let path = path_of("iii-console", "0.21.0");
    publish_console(server, "0.21.0");
    server.put(&path, File::Stalled(archive(&["iii-console"], "0.21.0")));
    let child = person.update_command(server, &["console"]).stderr(Stdio::null()).spawn().expect("iii starts");
    let asked = eventually(PATIENCE, || server.requests().iter().any(|request| request.ends_with(&path)).then_some(()));
    assert!(asked.is_some(), "the archive was not asked for");
    child
}

#[test]
fn an_update_that_is_interrupted_or_killed_leaves_the_old_program() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    let mut child = stalled(&person, &server);
    check(&person.update(&server, &["console"]), 1, &[], &["error: another `iii update` is running"]);
    kill(i32::try_from(child.id()).expect("a pid"), Signal::SIGINT);
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    person.has_console("0.20.0");

    let mut child = stalled(&person, &server);
    child.kill().expect("a running process");
    child.wait().expect("an end");
    publish_console(&server, "0.21.0");
    check(&person.update(&server, &["console"]), 0, &[], &["updated 0.20.0 → 0.21.0"]);
    person.has_console("0.21.0");
}

#[test]
fn a_folder_that_may_not_be_written_to_is_named_and_nothing_is_downloaded() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    fs::create_dir_all(person.programs()).expect("programs");
    let data = person.home().join("data");
    fs::create_dir(&data).expect("a folder");
    let allow = |folder: &Path, mode| fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("a mode");
    for folder in [person.home(), &person.folder()] {
        allow(folder, 0o755);
    }
    allow(&data, 0o777);
    allow(&person.programs(), 0o555);
    // By a process of its own: a copy that this one writes may be busy when it is to be run.
    let iii = person.home().join("iii");
    check(&Answer::of(Command::new("cp").arg(bin_dir().join("iii")).arg(&iii)), 0, &[], &[]);
    let mut command = person.command_of(&iii, &["update", "console"]);
    command.env("III_UPDATE_URL", server.url()).env("XDG_DATA_HOME", &data);
    if geteuid().is_root() {
        // Modes do not stop root.
        command.uid(OTHER_USER).gid(OTHER_USER);
    }
    let answer = Answer::of(&mut command);
    let folder = person.programs().display().to_string();
    check(&answer, 1, &[], &["error: could not write to ", &folder, "Permission denied", "hint: nothing was replaced"]);
    assert_eq!(server.requests(), ["/releases/index.json"]);
}

#[test]
fn a_platform_without_a_build_is_told_which_have_one() {
    let (person, server) = (Person::new(), FileServer::start());
    let index = json!({ "programs": { "iii-console": { "version": "1.0.0", "targets": ["z80-unknown-cpm"] } } });
    server.put("index.json", File::Whole(index.to_string().into_bytes()));
    check(&person.update(&server, &["console"]), 1, &[], &["error: ", &platform(), "z80-unknown-cpm"]);
    check(&person.update(&server, &["cloud"]), 1, &[], &["error: no release of iii-cloud"]);
}

#[test]
fn one_target_that_fails_does_not_stop_the_others() {
    let (person, server) = (Person::new(), FileServer::start());
    for program in ["iii-console", "iii-cloud"] {
        put_release(&server, program, "0.20.0", archive(&[program], "0.20.0"));
    }
    let own = env!("CARGO_PKG_VERSION");
    put_index(&server, &[("iii", own), ("iii-console", "0.20.0"), ("iii-cloud", "0.20.0")]);
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    check(&person.update(&server, &["cloud"]), 0, &[], &["installed"]);
    put_release(&server, "iii-cloud", "0.21.0", archive(&["iii-cloud"], "0.21.0"));
    put_index(&server, &[("iii", own), ("iii-console", "0.21.0"), ("iii-cloud", "0.21.0")]);
    let expected = [
        &format!("iii: already up to date ({own})"),
        "checking iii-console",
        "error: could not download",
        "404",
        "iii-cloud: updated 0.20.0 → 0.21.0",
    ];
    let answer = person.update(&server, &[]);
    check(&answer, 1, &[], &expected);
    assert!(!answer.stderr.contains("iii-worker"), "what is not installed is left alone: {answer:?}");
    check(&person.iii(&["console"]), 7, &["iii-console 0.20.0"], &[]);
    check(&person.iii(&["cloud"]), 7, &["iii-cloud 0.21.0"], &[]);
}

#[test]
fn the_engine_and_its_programs_are_replaced_together() {
    let (person, server) = (Person::new(), FileServer::start());
    let names = ["iii", "iii-engine", "iii-daemon", "iii-vm"];
    put_release(&server, "iii", "99.0.0", archive(&names, "99.0.0"));
    put_index(&server, &[("iii", "99.0.0")]);
    let folder = person.home().join("opt");
    fs::create_dir(&folder).expect("a folder");
    let iii = folder.join("iii");
    check(&Answer::of(Command::new("cp").arg(bin_dir().join("iii")).arg(&iii)), 0, &[], &[]);
    for words in [&["update", "self"][..], &["update", "iii"]] {
        let mut command = person.command_of(&iii, words);
        let answer = Answer::of(command.env("III_UPDATE_URL", server.url()));
        if words[1] == "self" {
            let own = env!("CARGO_PKG_VERSION");
            check(&answer, 0, &[], &["checking iii\n", &format!("iii: updated {own} → 99.0.0")]);
        } else {
            check(&answer, 7, &["iii 99.0.0 update iii"], &[]);
        }
    }
    for name in names {
        let answer = Answer::of(&mut person.command_of(&folder.join(name), &[]));
        check(&answer, 7, &[&format!("{name} 99.0.0")], &[]);
    }
    assert_eq!(fs::read_dir(&folder).expect("programs").count(), names.len());
}

#[test]
fn a_damaged_state_file_stops_updates_and_nothing_else() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    fs::write(person.state_file(), "{").expect("state.json");
    check(&person.update(&server, &["console"]), 1, &[], &["error: ", "state.json is damaged", "hint: delete"]);
    check(&person.iii(&["console"]), 7, &["iii-console 0.20.0"], &["warning: ", "state.json is damaged"]);
}

#[test]
fn an_update_is_announced_once_a_day() {
    let (person, server) = (Person::new(), with_console("0.20.0"));
    check(&person.update(&server, &["console"]), 0, &[], &["installed"]);
    publish_console(&server, "0.21.0");
    let console = || person.iii_with("III_UPDATE_URL", server.url(), &["console"]);
    check(&console(), 7, &["iii-console 0.20.0"], &[]);
    let mut state = person.state();
    state["last_update_check"] = "2026-01-01T00:00:00Z".into();
    // Half a second may be too short for the server on a busy machine, so it has several tries.
    let announced = eventually(PATIENCE, || {
        fs::write(person.state_file(), state.to_string()).expect("state.json");
        let answer = console();
        assert_eq!(answer.status, 7, "{answer:?}");
        answer.stderr.contains("info: iii-console 0.21.0 is there, this is 0.20.0: `iii update console`").then_some(())
    });
    assert!(announced.is_some());
    let asked = server.requests().len();
    check(&console(), 7, &["iii-console 0.20.0"], &[]);
    assert_eq!(server.requests().len(), asked, "not twice a day");
}
