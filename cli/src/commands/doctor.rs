//! `iii doctor`: what this machine has and lacks for running VMs, each with its next step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::{self, Address};
use crate::clean::line;
use crate::commands::{SHORT, engine::bin_dir, print_json};
use crate::connection::Connection;

/// Below this, images and templates do not fit.
const MIN_FREE_MIB: u64 = 2048;

/// What was found about one thing.
#[derive(Serialize)]
struct Finding {
    subject: &'static str,
    ok: bool,
    /// Whether VMs cannot run without.
    needed: bool,
    found: String,
    hint: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, found: String) -> Self {
        Self { subject, ok: true, needed: true, found, hint: None }
    }

    fn bad(subject: &'static str, found: String, hint: &str) -> Self {
        Self { subject, ok: false, needed: true, found, hint: Some(hint.to_owned()) }
    }

    fn optional(self) -> Self {
        Self { needed: false, ..self }
    }
}

pub(crate) async fn run(arguments: arguments::Doctor) -> Outcome {
    let home = home();
    let choice = ask_vm("--choice", &[&home.join("lib/kit"), &home.join("templates")]);
    let mut findings =
        vec![programs(), qemu(&home, &choice), kvm(), kit(&home), driver(&choice), images(&home), space(&home)];
    findings.push(engine(&arguments.address).await);
    let bad = findings.iter().any(|finding| finding.needed && !finding.ok);
    if arguments.json {
        print_json(&json!({ "ok": !bad, "findings": findings }));
        return Ok(u8::from(bad));
    }
    for finding in &findings {
        let mark = match (finding.ok, finding.needed) {
            (true, _) => "ok  ",
            (false, true) => "BAD ",
            (false, false) => "note",
        };
        println!("{mark}  {:8} {}", finding.subject, line(&finding.found));
        if let Some(hint) = &finding.hint {
            println!("{:15}{hint}", "");
        }
    }
    Ok(u8::from(bad))
}

fn home() -> PathBuf {
    std::env::var_os("III_HOME")
        .map_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".iii"), PathBuf::from)
}

fn programs() -> Finding {
    let folder = bin_dir();
    let missing: Vec<&str> =
        ["iii-engine", "iii-daemon", "iii-vm"].into_iter().filter(|name| !folder.join(name).is_file()).collect();
    if missing.is_empty() {
        return Finding::good("programs", format!("iii-engine, iii-daemon and iii-vm in {}", folder.display()));
    }
    let found = format!("{} not in {}", missing.join(", "), folder.display());
    Finding::bad("programs", found, "build all of them with `make build`, or name their folder in III_BIN_DIR")
}

/// The QEMU that VMs would run on. Where none was found, the driver's finding says whether VMs do without.
fn qemu(home: &Path, choice: &Value) -> Finding {
    let asked = ask_vm("--qemu", &[&home.join("lib/kit")]);
    let text = |field: &str| asked[field].as_str().unwrap_or("unknown").to_owned();
    let needed = asked["origin"].is_string() && choice["driver"] != "libkrun";
    match asked["error"].as_str() {
        None if asked.is_null() => Finding::bad("QEMU", "iii-vm does not say".into(), "build it with `make build`"),
        None => Finding::good("QEMU", text("version")),
        Some(error) if needed => Finding::bad("QEMU", error.to_owned(), &text("hint")),
        Some(error) => Finding::bad("QEMU", error.to_owned(), &text("hint")).optional(),
    }
}

/// By running a guest: a device that opens says nothing.
fn kvm() -> Finding {
    let verdict = ask_vm("--probe", &[]);
    let found = match verdict["verdict"].as_str() {
        Some("works") => return Finding::good("KVM", "runs guests: VMs use it".into()),
        Some("absent") => "there is no /dev/kvm".to_owned(),
        Some("no_permission") => "this user may not open /dev/kvm (join the group `kvm`)".to_owned(),
        Some("cannot_run_guests") => {
            let reason = verdict["reason"].as_str().unwrap_or("for no known reason");
            format!("/dev/kvm is there, but cannot run a guest: {reason}")
        }
        Some("no_answer") => {
            "/dev/kvm is there, and a guest on it gave no answer in time: asked again in ten minutes".to_owned()
        }
        Some("not_run") => {
            let reason = verdict["reason"].as_str().unwrap_or("for no known reason");
            format!("the probe did not run: {reason}")
        }
        _ => "the probe gave no verdict".to_owned(),
    };
    Finding::bad("KVM", found, "VMs are emulated: they start as fast, and compute 15 to 20 times slower").optional()
}

fn kit(home: &Path) -> Finding {
    let kit = home.join("lib/kit");
    for disk in ["scratch.ext4", "scratch-throwaway.ext4"] {
        if !kit.join(disk).exists() {
            return Finding::bad("kit", format!("{disk} not in {}", kit.display()), "run `make kit`");
        }
    }
    let asked = ask_vm("--kit", &[&kit]);
    let text = |field: &str| asked[field].as_str().unwrap_or("unknown").to_owned();
    match asked["error"].as_str() {
        None if asked.is_null() => Finding::bad("kit", "it could not be checked".into(), "run `make kit`"),
        None => Finding::good("kit", format!("guest kernel {} ({}), as it was made", text("release"), text("flavour"))),
        Some(error) => Finding::bad("kit", error.to_owned(), &text("hint")),
    }
}

/// What a VM would run on, by the rule of `auto` or by what the environment names.
fn driver(asked: &Value) -> Finding {
    let text = |field: &str| asked[field].as_str().unwrap_or("unknown").to_owned();
    match asked["error"].as_str() {
        None if asked.is_null() => Finding::bad("driver", "iii-vm does not say".into(), "build it with `make build`"),
        None => Finding::good("driver", format!("{} on {}: {}", text("driver"), text("accel"), text("why"))),
        Some(error) => Finding::bad("driver", error.to_owned(), &text("hint")),
    }
}

/// What `iii-vm` answers, also with an error; `null` when it does not answer.
fn ask_vm(flag: &str, folders: &[&Path]) -> Value {
    let output = Command::new(bin_dir().join("iii-vm")).arg(flag).args(folders).output();
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or(Value::Null)
}

fn images(home: &Path) -> Finding {
    let names = fs::read_dir(home.join("lib/images")).into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .filter(|entry| entry.path().join("index.json").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    if names.is_empty() {
        let found = "none built here: presets come from the public registry".to_owned();
        return Finding::bad("images", found, "run `make images` to build them from Debian packages").optional();
    }
    Finding::good("images", names.join(", "))
}

fn space(home: &Path) -> Finding {
    let existing = home.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match statvfs(existing) {
        Ok(disk) => {
            #[cfg_attr(
                target_os = "linux",
                expect(clippy::useless_conversion, reason = "other systems count in 32 bits")
            )]
            let free_mib = u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size()) >> 20;
            let found = format!("{free_mib} MiB free for {}", home.display());
            if free_mib >= MIN_FREE_MIB {
                Finding::good("disk", found)
            } else {
                Finding::bad(
                    "disk",
                    found,
                    "free some space: images and templates need 2 GiB; `iii worker clear` may help",
                )
            }
        }
        Err(error) => Finding::bad("disk", format!("{}: {error}", existing.display()), "check III_HOME"),
    }
}

async fn engine(address: &Address) -> Finding {
    let place = format!("{}:{}", address.address, address.port);
    let asked = async {
        let connection = Connection::open(address).await?;
        let answer = connection.ask("engine::workers::list", &json!({}), SHORT).await;
        connection.close().await;
        answer
    };
    match asked.await {
        Ok(answer) => {
            let count = answer["workers"].as_array().map_or(0, Vec::len);
            Finding::good("engine", format!("answers at {place}, {count} workers")).optional()
        }
        Err(_) => Finding::bad("engine", format!("nobody answers at {place}"), "start it with `iii`").optional(),
    }
}
