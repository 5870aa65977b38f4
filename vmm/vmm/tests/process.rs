//! What `Vm` makes of an `iii-vm` that behaves in any way; here it is a shell script.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::{AccelChoice, DriverChoice, MemoryMib, TemplateUse, VcpuCount, Vm, VmEvent, VmExit, VmSpec};

struct Pretend {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Pretend {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("iii-vm");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, program }
    }

    fn spec(&self) -> VmSpec {
        let nowhere = || Path::new("/nowhere").to_owned();
        VmSpec {
            name: "pretend".to_owned(),
            run_dir: self.folder.path().join("run/vm"),
            kit_dir: nowhere(),
            template_dir: nowhere(),
            memory: MemoryMib::new(256).unwrap(),
            vcpus: VcpuCount::new(1).unwrap(),
            driver: DriverChoice::Auto,
            accel: AccelChoice::Auto,
            root_disk: nowhere(),
            scratch_disk: nowhere(),
            scratch_is_kept: false,
            network: None,
            template: TemplateUse::Clone,
        }
    }

    async fn start(&self) -> (Vm, std::os::unix::net::UnixStream) {
        Vm::spawn(&self.spec(), &self.program).await.unwrap()
    }
}

async fn failure(vm: &mut Vm) -> (String, String) {
    match tokio::time::timeout(Duration::from_secs(20), vm.wait()).await.expect("it ends") {
        VmExit::Failed { reason, console_tail, .. } => (reason, console_tail),
        VmExit::Stopped | VmExit::Unrestorable { .. } => panic!("it did not stop"),
    }
}

#[tokio::test]
async fn events_come_in_order_and_exited_is_the_last() {
    let pretend = Pretend::new(
        r#"echo '{"event":"building_template"}'; echo 'no event'; echo '{"event":"warning","message":"m"}'
        echo '{"event":"exited","how":"stopped"}'; echo '{"event":"building_template"}'"#,
    );
    let (mut vm, _guest) = pretend.start().await;
    assert_eq!(vm.next_event().await, VmEvent::BuildingTemplate);
    assert_eq!(vm.next_event().await, VmEvent::Warning { message: "m".to_owned() });
    assert_eq!(vm.next_event().await, VmEvent::Exited(VmExit::Stopped));
    assert_eq!(vm.next_event().await, VmEvent::Exited(VmExit::Stopped));
}

#[tokio::test]
async fn the_description_is_private_and_the_guest_channel_is_descriptor_3() {
    let pretend = Pretend::new(r#"cat "$1" >&3; echo logged >&2; echo '{"event":"exited","how":"stopped"}'"#);
    let (mut vm, mut guest) = pretend.start().await;
    let mut text = String::new();
    guest.read_to_string(&mut text).unwrap();
    let spec: VmSpec = serde_json::from_str(&text).unwrap();
    assert_eq!(spec.name, "pretend");
    assert_eq!(vm.wait().await, VmExit::Stopped);
    let mode = |name: &str| fs::metadata(spec.run_dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("vm.json"), mode("vm.log"), mode("")), (0o600, 0o600, 0o700));
    assert_eq!(fs::read_to_string(spec.run_dir.join("vm.log")).unwrap(), "logged\n");
}

#[tokio::test]
async fn a_silent_end_tells_status_and_last_words_of_the_guest() {
    let pretend = Pretend::new(r#"printf 'last words' > "${1%/*}/console.log"; exit 7"#);
    let (mut vm, _guest) = pretend.start().await;
    let (reason, console_tail) = failure(&mut vm).await;
    assert_eq!(reason, "iii-vm ended with status 7 and gave no reason");
    assert_eq!(console_tail, "last words");
}

#[tokio::test]
async fn a_line_without_end_ends_the_vm() {
    let pretend = Pretend::new("exec tr '\\0' x < /dev/zero");
    let (mut vm, _guest) = pretend.start().await;
    assert!(failure(&mut vm).await.0.contains("65536 bytes"));
}

#[tokio::test]
async fn kill_ends_what_ignores_its_lifeline() {
    let pretend = Pretend::new("trap '' TERM INT HUP; while :; do sleep 1; done");
    let (mut vm, _guest) = pretend.start().await;
    vm.kill();
    let exit = tokio::time::timeout(Duration::from_secs(20), vm.wait()).await.expect("it ends");
    assert_eq!(exit, VmExit::Stopped);
}

#[tokio::test]
async fn dropping_closes_the_guest_channel_and_ends_the_process() {
    let pretend = Pretend::new("while :; do sleep 1; done");
    let (vm, mut guest) = pretend.start().await;
    let pid = vm.pid();
    drop(vm);
    guest.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    for _ in 0..500 {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn next_event_can_be_cancelled_in_the_middle_of_a_line() {
    let pretend = Pretend::new(
        r#"printf '{"event":"build'; sleep 0.3; echo 'ing_template"}'; echo '{"event":"exited","how":"stopped"}'"#,
    );
    let (mut vm, _guest) = pretend.start().await;
    assert!(tokio::time::timeout(Duration::from_millis(100), vm.next_event()).await.is_err());
    assert_eq!(vm.next_event().await, VmEvent::BuildingTemplate);
    assert_eq!(vm.wait().await, VmExit::Stopped);
}

#[tokio::test]
async fn a_process_that_lingers_after_its_last_event_is_killed() {
    let pretend = Pretend::new(r#"echo '{"event":"exited","how":"stopped"}'; while :; do sleep 1; done"#);
    let (mut vm, _guest) = pretend.start().await;
    let exit = tokio::time::timeout(Duration::from_secs(20), vm.wait()).await.expect("it ends");
    assert_eq!(exit, VmExit::Stopped);
}

const SNAPSHOT: &str = r#"{"event":"snapshotted","paused_us":1,"took_ms":2,"memory_bytes":3,"touched_bytes":4,"copied_paused_bytes":5,"disk_layers":1}"#;

#[tokio::test]
async fn commands_are_lines_and_what_is_said_before_the_answer_is_not_lost() {
    let pretend = Pretend::new(&format!(
        r#"read -r line; printf '%s' "$line" > "${{1%/*}}/heard"; echo '{{"event":"warning","message":"m"}}'
        echo '{SNAPSHOT}'; read -r line; echo '{{"event":"paused"}}'; read -r gone"#
    ));
    let (mut vm, _guest) = pretend.start().await;
    let request = vmm::SnapshotRequest {
        folder: PathBuf::from("/s"),
        leave_paused: true,
        purpose: vmm::SnapshotPurpose::Children(2),
    };
    let taken = vm.snapshot(request).await.unwrap();
    assert_eq!((taken.paused_us, taken.disk_layers), (1, 1));
    let heard = fs::read_to_string(pretend.spec().run_dir.join("heard")).unwrap();
    assert_eq!(heard, r#"{"command":"snapshot","folder":"/s","leave_paused":true,"purpose":{"children":2}}"#);
    vm.pause().await.unwrap();
    assert_eq!(vm.next_event().await, VmEvent::Warning { message: "m".to_owned() });
}

#[tokio::test]
async fn an_end_before_the_answer_is_an_error_and_is_repeated() {
    let pretend = Pretend::new(r#"read -r line; echo '{"event":"exited","how":"stopped"}'"#);
    let (mut vm, _guest) = pretend.start().await;
    assert_eq!(vm.pause().await, Err(vmm::CommandError::Ended(VmExit::Stopped)));
    assert_eq!(vm.next_event().await, VmEvent::Exited(VmExit::Stopped));
    assert_eq!(vm.resume().await, Err(vmm::CommandError::Ended(VmExit::Stopped)));
}

#[tokio::test]
async fn the_answer_to_a_cancelled_command_is_not_taken_for_the_next_ones() {
    let pretend = Pretend::new(
        r#"read -r line; read -r line; echo '{"event":"paused"}'
        echo '{"event":"command_failed","command":"resume","kind":"failed","reason":"r","hint":null}'; read -r gone"#,
    );
    let (mut vm, _guest) = pretend.start().await;
    assert!(tokio::time::timeout(Duration::from_millis(100), vm.pause()).await.is_err());
    let Err(vmm::CommandError::Failed(failed)) = vm.resume().await else { panic!("it fails") };
    assert_eq!(failed.to_string(), "cannot resume the VM: r");
}
