//! Real machines: what `iii-vm` promises, with QEMU and the kit.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmm::{AccelChoice, DriverChoice, MemoryMib, TemplateUse, VcpuCount, Vm, VmEvent, VmExit, VmSpec, VmStart};

const III_VM: &str = env!("CARGO_BIN_EXE_iii-vm");
const PATIENCE: Duration = Duration::from_secs(60);
const PING: &[u8] = br#""ping""#;
const POWER_OFF: &[u8] = br#"{"shutdown":{"grace_ms":0}}"#;

/// Says which folder holds templates; set for the process that is killed in `nothing_outlives_the_parent`.
const HOLD: &str = "III_TEST_HOLD_VM_IN";

fn kit() -> PathBuf {
    let home = std::env::var_os("III_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".iii")));
    let kit = home.expect("HOME is set").join("lib/kit");
    assert!(kit.join("kit.json").is_file(), "these tests boot guests: run `make kit` first ({})", kit.display());
    kit
}

fn spec(folder: &Path, name: &str) -> VmSpec {
    let run_dir = folder.join(name);
    fs::create_dir_all(&run_dir).unwrap();
    let disk = |file: &str, length: u64| {
        let path = run_dir.join(file);
        File::create(&path).unwrap().set_len(length).unwrap();
        path
    };
    VmSpec {
        name: name.to_owned(),
        kit_dir: kit(),
        template_dir: folder.join("templates"),
        memory: MemoryMib::new(256).unwrap(),
        vcpus: VcpuCount::new(1).unwrap(),
        driver: DriverChoice::Qemu,
        accel: AccelChoice::Tcg,
        root_disk: disk("root", vmm::ROOT_DISK_BYTES),
        scratch_disk: disk("scratch", vmm::SCRATCH_DISK_BYTES),
        scratch_is_kept: false,
        network: None,
        template: TemplateUse::Clone,
        run_dir,
    }
}

/// A VM, all it said until it ran, and its guest channel.
async fn running(spec: &VmSpec) -> (Vm, UnixStream, Vec<VmEvent>) {
    let (mut vm, guest) = Vm::spawn(spec, Path::new(III_VM)).await.unwrap();
    guest.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut events = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, vm.next_event()).await.expect("the VM says something");
        assert!(!matches!(event, VmEvent::Exited(_)), "{event:?}");
        events.push(event);
        if matches!(events.last(), Some(VmEvent::Running { .. })) {
            return (vm, guest, events);
        }
    }
}

fn ask(guest: &mut UnixStream, request: &[u8]) {
    let length = u32::try_from(request.len()).unwrap().to_le_bytes();
    guest.write_all(&[&length[..], &[1, 0, 0, 0, 2, 1, 0, 0], request].concat()).unwrap();
}

/// Kind and body of the guest's next frame.
fn frame(guest: &mut UnixStream) -> (u8, String) {
    let mut header = [0u8; 12];
    guest.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_le_bytes(header[..4].try_into().unwrap()) as usize];
    guest.read_exact(&mut body).unwrap();
    (header[8], String::from_utf8(body).unwrap())
}

/// Processes whose command line names `folder`, other than `iii-vm`'s own.
fn machines_in(folder: &Path) -> Vec<u32> {
    let needle = folder.to_str().unwrap().as_bytes();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(needle.len()).any(|part| part == needle))
    })
    .collect()
}

fn eventually_none_in(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !machines_in(folder).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", machines_in(folder));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn restored(events: &[VmEvent]) -> bool {
    matches!(events.last(), Some(VmEvent::Running { start: VmStart::Restored, .. }))
}

#[tokio::test]
async fn the_first_vm_makes_a_template_and_the_second_is_cloned_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut guest, events) = running(&spec(folder.path(), "first")).await;
    assert_eq!(events[0], VmEvent::BuildingTemplate);
    assert!(restored(&events), "{events:?}");
    ask(&mut guest, PING);
    assert_eq!(frame(&mut guest), (3, r#""done""#.to_owned()));

    let (second, mut guest, events) = running(&spec(folder.path(), "second")).await;
    assert!(events.len() == 1 && restored(&events), "{events:?}");
    ask(&mut guest, PING);
    assert_eq!(frame(&mut guest).0, 3);

    first.kill();
    assert_eq!(first.wait().await, VmExit::Stopped);
    assert_eq!(first.next_event().await, VmEvent::Exited(VmExit::Stopped));
    drop(second);
    eventually_none_in(folder.path());
    assert_eq!(guest.read(&mut [0]).unwrap_or(0), 0, "the guest channel ends with the VM");
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_that_start_together_share_one_template() {
    let folder = tempfile::tempdir().unwrap();
    let specs: Vec<VmSpec> = ["a", "b", "c"].iter().map(|name| spec(folder.path(), name)).collect();
    let (a, b, c) = tokio::join!(running(&specs[0]), running(&specs[1]), running(&specs[2]));
    let all = [a, b, c];
    assert!(all.iter().all(|(_, _, events)| restored(events)));
    let built = all.iter().filter(|(_, _, events)| events.contains(&VmEvent::BuildingTemplate)).count();
    assert_eq!(built, 1);
}

#[tokio::test]
async fn a_guest_that_powers_off_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, mut guest, _) = running(&spec(folder.path(), "off")).await;
    ask(&mut guest, POWER_OFF);
    let exit = tokio::time::timeout(PATIENCE, vm.wait()).await.expect("the guest powers off");
    assert_eq!(exit, VmExit::Stopped);
}

#[tokio::test]
async fn a_damaged_template_costs_a_boot_and_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    drop(running(&spec(folder.path(), "makes-it")).await);
    let templates = fs::read_dir(folder.path().join("templates")).unwrap().flatten().map(|entry| entry.path());
    let template = templates.into_iter().find(|path| path.is_dir()).expect("a template");
    fs::write(template.join("state"), b"not a machine").unwrap();

    let (_vm, mut guest, events) = running(&spec(folder.path(), "suffers")).await;
    assert!(matches!(&events[0], VmEvent::Warning { message } if message.contains("damaged")), "{events:?}");
    assert!(!restored(&events), "{events:?}");
    assert_eq!(frame(&mut guest).0, 1, "a booted guest says Hello");

    let (_vm, _guest, events) = running(&spec(folder.path(), "repairs")).await;
    assert!(events[0] == VmEvent::BuildingTemplate && restored(&events), "{events:?}");
}

#[tokio::test]
async fn a_state_that_qemu_refuses_costs_a_boot() {
    let folder = tempfile::tempdir().unwrap();
    drop(running(&spec(folder.path(), "makes-it")).await);
    let templates = fs::read_dir(folder.path().join("templates")).unwrap().flatten().map(|entry| entry.path());
    let template = templates.into_iter().find(|path| path.is_dir()).expect("a template");
    // The digest of an empty file: the damage is found by QEMU, not by us.
    fs::write(template.join("state"), b"").unwrap();
    let about = template.join("template.json");
    let text = fs::read_to_string(&about).unwrap();
    let (before, after) = text.split_once(r#""state_sha256": ""#).unwrap();
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    fs::write(&about, format!(r#"{before}"state_sha256": "{empty}{}"#, &after[64..])).unwrap();

    let (_vm, mut guest, events) = running(&spec(folder.path(), "suffers")).await;
    assert!(matches!(events[0], VmEvent::Warning { .. }) && !restored(&events), "{events:?}");
    assert_eq!(frame(&mut guest).0, 1);
}

#[tokio::test]
async fn killing_iii_vm_leaves_no_machine_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, _guest, _) = running(&spec(folder.path(), "victim")).await;
    assert_eq!(machines_in(&folder.path().join("victim")).len(), 2, "iii-vm and QEMU");
    assert!(Command::new("kill").args(["-9", &vm.pid().to_string()]).status().unwrap().success());
    let VmExit::Failed { reason, .. } = vm.wait().await else { panic!("killed is not stopped") };
    assert_eq!(reason, "iii-vm was killed by signal 9");
    eventually_none_in(folder.path());
}

#[tokio::test]
async fn killing_qemu_is_reported_with_its_signal() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, _guest, _) = running(&spec(folder.path(), "victim")).await;
    let qemu = machines_in(&folder.path().join("victim")).into_iter().find(|pid| *pid != vm.pid()).expect("a QEMU");
    assert!(Command::new("kill").args(["-9", &qemu.to_string()]).status().unwrap().success());
    let VmExit::Failed { reason, .. } = vm.wait().await else { panic!("killed is not stopped") };
    assert!(reason.starts_with("QEMU ended with signal 9"), "{reason}");
}

/// Not a test by itself: the parent that `nothing_outlives_the_parent` kills.
#[tokio::test]
async fn holds_a_vm_until_killed() {
    let Some(folder) = std::env::var_os(HOLD) else { return };
    let (_vm, _guest, _) = running(&spec(Path::new(&folder), "held")).await;
    println!("\nHOLDING");
    std::thread::sleep(PATIENCE);
}

#[test]
fn nothing_outlives_the_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_vm_until_killed", "--nocapture"])
        .env(HOLD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "HOLDING" {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0, "the parent starts a VM");
    }
    assert_eq!(machines_in(&folder.path().join("held")).len(), 2);
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually_none_in(folder.path());
}

#[tokio::test]
async fn a_missing_kit_names_the_file_and_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let spec = VmSpec { kit_dir: folder.path().join("nowhere"), ..spec(folder.path(), "kitless") };
    let (mut vm, _guest) = Vm::spawn(&spec, Path::new(III_VM)).await.unwrap();
    let VmExit::Failed { reason, hint, .. } = vm.wait().await else { panic!("no kit, no VM") };
    assert!(reason.contains("nowhere/kernel"), "{reason}");
    assert_eq!(hint.as_deref(), Some("run `make kit`"));
}

#[tokio::test]
async fn a_disk_of_the_wrong_size_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path(), "small");
    File::create(&spec.root_disk).unwrap().set_len(4096).unwrap();
    let (mut vm, _guest) = Vm::spawn(&spec, Path::new(III_VM)).await.unwrap();
    let VmExit::Failed { reason, .. } = vm.wait().await else { panic!("no VM without its disk") };
    assert!(reason.contains("4096 bytes"), "{reason}");
}

#[tokio::test]
async fn a_missing_program_is_an_error_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let error = Vm::spawn(&spec(folder.path(), "none"), Path::new("/nowhere/iii-vm")).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/iii-vm"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("III_BIN_DIR")));
}
