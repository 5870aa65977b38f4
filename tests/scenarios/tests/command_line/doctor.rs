//! What `iii doctor` says about the QEMU that is named, with no kit and no engine.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::person::Person;

fn about_qemu(person: &Person, named: &str) -> Value {
    let answer = person.iii_with("III_QEMU", named, &["doctor", "--json", "--port", "1"]);
    let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["subject"] == "QEMU").expect("a finding about QEMU").clone()
}

#[test]
fn a_qemu_that_runs_is_told_with_its_version() {
    let person = Person::new();
    let program = person.folder().join("qemu");
    fs::write(&program, "#!/bin/sh\necho 'QEMU emulator version 99'\necho more\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.display().to_string();
    let found = about_qemu(&person, &program);
    let expected = json!({ "subject": "QEMU", "ok": true, "needed": true,
        "found": format!("QEMU emulator version 99: {program}"), "hint": null });
    assert_eq!(found, expected);
}

#[test]
fn a_qemu_that_is_named_has_to_be_there_and_to_run() {
    let person = Person::new();
    for (named, found, hint) in [
        ("/bin/false", "/bin/false ended with", "in III_QEMU, or unset it"),
        ("/nowhere/qemu", "III_QEMU names /nowhere/qemu, which is no file", "unset it"),
    ] {
        let bad = about_qemu(&person, named);
        assert_eq!((&bad["ok"], &bad["needed"]), (&json!(false), &json!(true)), "{bad}");
        assert!(bad["found"].as_str().unwrap_or("").starts_with(found), "{bad}");
        assert!(bad["hint"].as_str().unwrap_or("").contains(hint), "{bad}");
    }
}

#[test]
fn the_kits_own_qemu_is_found_before_the_kit_is_whole() {
    let person = Person::new();
    let kit = person.home().join(".iii/lib/kit");
    fs::create_dir_all(&kit).unwrap();
    fs::write(kit.join("qemu-system-x86_64"), "no program").unwrap();
    let bad = about_qemu(&person, "");
    assert_eq!((&bad["ok"], &bad["needed"]), (&json!(false), &json!(true)), "{bad}");
    assert!(bad["found"].as_str().unwrap_or("").contains("lib/kit/qemu-system-x86_64"), "{bad}");
    assert_eq!(bad["hint"], "run `make qemu kit`", "{bad}");
}
