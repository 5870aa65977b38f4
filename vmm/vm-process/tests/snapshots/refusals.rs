//! What is refused or fails, and leaves the source as it was.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vmm::{
    CommandError, FailureKind, SnapshotInfo, SnapshotPurpose, SnapshotRequest, SnapshotTaken, TemplateUse, Vm, VmExit,
    VmSpec,
};

use crate::place::{III_VM, PATIENCE, Place, ping, running, running_as};

async fn failure(spec: &VmSpec) -> String {
    let (mut vm, _channel) = Vm::spawn(spec, Path::new(III_VM)).await.unwrap();
    match tokio::time::timeout(PATIENCE, vm.wait()).await.expect("it ends") {
        VmExit::Failed { reason, .. } | VmExit::Unrestorable { reason, .. } => reason,
        VmExit::Stopped => panic!("it did not fail"),
    }
}

async fn refused(taken: impl Future<Output = Result<SnapshotTaken, CommandError>>) -> vmm::CommandFailed {
    match taken.await {
        Err(CommandError::Failed(failed)) => failed,
        other => panic!("{other:?}"),
    }
}

/// An `iii-vm` for which all of `folder` is a file system of `size`; `None` where that is not allowed.
fn on_a_small_disk(place: &Place, folder: &Path, size: &str) -> Option<PathBuf> {
    let user = if nix::unistd::geteuid().is_root() { "" } else { "--user --map-root-user" };
    let may = Command::new("sh").args(["-c", &format!("unshare --mount {user} true")]).status();
    if !may.is_ok_and(|status| status.success()) {
        return None;
    }
    let program = place.folder.path().join("small-iii-vm");
    let folder = folder.display();
    // The description was written to the folder below.
    let script = format!(
        "#!/bin/sh\nspec=$(cat \"$1\")\nexport spec\nexec unshare --mount {user} sh -c '\n\
         mount -t tmpfs -o size={size} tmpfs {folder} && mkdir {folder}/vm && printf %s \"$spec\" > \"$0\" && \
         truncate -s {} {folder}/vm/scratch.ext4 && exec {III_VM} \"$0\"' \"$1\"\n",
        vmm::SCRATCH_DISK_BYTES
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some(program)
}

#[tokio::test]
async fn a_snapshot_that_finds_no_space_is_refused_and_the_source_runs() {
    let place = Place::new();
    let folder = place.folder.path().join("small");
    let spec = place.spec("small/vm", TemplateUse::Clone);
    let Some(program) = on_a_small_disk(&place, &folder, "20m") else {
        return eprintln!("not run: no file system may be mounted here");
    };
    let (mut vm, guest) = running_as(&spec, &program).await;
    for _ in 0..2 {
        let request =
            SnapshotRequest { folder: folder.join("s"), leave_paused: true, purpose: SnapshotPurpose::Keeping };
        let failed = refused(vm.snapshot(request)).await;
        assert_eq!(failed.kind, FailureKind::NoSpace, "{failed}");
        ping(&guest).await;
    }
}

/// Space for the memory but not for all that follows: it runs out before, while and after the guest stands still.
#[tokio::test]
async fn wherever_the_space_runs_out_the_source_goes_on() {
    let place = Place::new();
    let (mut vm, _guest) = running(&place.spec("measured", TemplateUse::Clone)).await;
    let needed = place.take(&mut vm, "s").await.unwrap().memory_bytes;
    for more in 0..8 {
        let name = format!("small-{more}");
        let folder = place.folder.path().join(&name);
        let spec = place.spec(&format!("{name}/vm"), TemplateUse::Clone);
        let size = format!("{}k", needed / 1024 + 128 * more);
        let Some(program) = on_a_small_disk(&place, &folder, &size) else {
            return eprintln!("not run: no file system may be mounted here");
        };
        let (mut vm, guest) = running_as(&spec, &program).await;
        for attempt in ["s", "t"] {
            let request = SnapshotRequest {
                folder: folder.join(attempt),
                leave_paused: false,
                purpose: SnapshotPurpose::Keeping,
            };
            match vm.snapshot(request).await {
                Ok(taken) => assert!(more > 0, "{taken:?}"),
                Err(CommandError::Failed(failed)) => println!("with {size}: {:?}, {failed}", failed.kind),
                Err(other) => panic!("{other:?}"),
            }
            ping(&guest).await;
        }
    }
}

#[tokio::test]
async fn what_is_damaged_or_does_not_fit_is_refused_with_the_reason() {
    let place = Place::new();
    let (mut source, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    place.take(&mut source, "s").await.unwrap();
    let path = |file: &str| place.snapshot("s").join(file);

    let other_root = VmSpec { root_disk: place.folder.path().join("other"), ..place.child("root", "s") };
    File::create(&other_root.root_disk).unwrap().set_len(vmm::ROOT_DISK_BYTES).unwrap();
    assert!(failure(&other_root).await.ends_with("the image"));

    let about = fs::read_to_string(path("snapshot.json")).unwrap();
    let mut changed: serde_json::Value = serde_json::from_str(&about).unwrap();
    changed["key"]["qemu"][1] = 7.into();
    changed["key"]["kit"]["kernel_sha256"] = "other".into();
    fs::write(path("snapshot.json"), changed.to_string()).unwrap();
    let reason = failure(&place.child("unfit", "s")).await;
    assert!(reason.ends_with("QEMU, the guest's kernel"), "{reason}");
    fs::write(path("snapshot.json"), &about).unwrap();

    let memory = File::options().read(true).write(true).open(path("memory")).unwrap();
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 128 << 20).unwrap();
    memory.write_all_at(&[byte[0] ^ 1], 128 << 20).unwrap();
    let reason = failure(&place.child("memory", "s")).await;
    assert!(reason.ends_with("memory is not what was saved"), "{reason}");
    memory.write_all_at(&byte, 128 << 20).unwrap();

    let state = fs::read(path("state")).unwrap();
    fs::write(path("state"), &state[..state.len() - 1]).unwrap();
    assert!(failure(&place.child("short", "s")).await.contains("damaged: state has"));
    fs::write(path("state"), vec![0; state.len()]).unwrap();
    assert!(failure(&place.child("state", "s")).await.ends_with("state is not what was saved"));
    fs::write(path("state"), &state).unwrap();

    let mut unsummed: serde_json::Value = serde_json::from_str(&about).unwrap();
    unsummed["memory_file"]["crc32"] = serde_json::Value::Null;
    fs::write(path("snapshot.json"), unsummed.to_string()).unwrap();
    let reason = failure(&place.child("unsummed", "s")).await;
    assert!(reason.ends_with("memory cannot be verified: it was saved without a checksum"), "{reason}");
    unsummed["nursery"] = 7.into();
    fs::write(path("snapshot.json"), unsummed.to_string()).unwrap();
    let reason = failure(&place.child("nursery", "s")).await;
    assert!(reason.contains("damaged: its nursery is not described"), "{reason}");
    fs::write(path("snapshot.json"), &about).unwrap();

    fs::rename(path("disk-0"), path("disk")).unwrap();
    assert!(failure(&place.child("disk", "s")).await.contains("disk-0"));
    fs::rename(path("disk"), path("disk-0")).unwrap();
    assert!(failure(&place.child("none", "absent")).await.starts_with("there is no complete snapshot"));
    let (_whole, guest) = running(&place.child("whole", "s")).await;
    ping(&guest).await;
}

#[tokio::test]
async fn a_snapshot_that_is_refused_or_fails_leaves_nothing_and_the_source_runs() {
    let place = Place::new();
    let kept = VmSpec { scratch_is_kept: true, ..place.spec("kept", TemplateUse::Clone) };
    let (mut vm, guest) = running(&kept).await;
    assert_eq!(refused(place.take(&mut vm, "s")).await.kind, FailureKind::Unsupported);
    ping(&guest).await;
    drop((vm, guest));

    let (mut vm, guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    fs::create_dir(place.snapshot("taken")).unwrap();
    assert_eq!(refused(place.take(&mut vm, "taken")).await.kind, FailureKind::Exists);
    assert_eq!(refused(place.take(&mut vm, "no/such/folder")).await.kind, FailureKind::Failed);
    let elsewhere = SnapshotRequest {
        folder: "/dev/shm/iii-test-snapshot".into(),
        leave_paused: true,
        purpose: SnapshotPurpose::Children(1),
    };
    assert_eq!(refused(vm.snapshot(elsewhere)).await.kind, FailureKind::OtherFileSystem);
    assert!(
        fs::read_dir("/dev/shm")
            .unwrap()
            .flatten()
            .all(|entry| { !entry.file_name().to_string_lossy().contains("iii-test-snapshot") })
    );
    assert_eq!(place.snapshots(), ["taken"]);
    ping(&guest).await;

    for number in 1..16 {
        let name = format!("s{number}");
        assert_eq!(place.take(&mut vm, &name).await.unwrap().disk_layers, number);
    }
    let failed = refused(place.take(&mut vm, "one-too-many")).await;
    assert_eq!(failed.kind, FailureKind::TooManyLayers);
    assert!(failed.hint.is_some());
    ping(&guest).await;
    let (_child, guest) = running(&place.child("child", "s15")).await;
    ping(&guest).await;
}

#[tokio::test]
async fn a_vm_that_ends_in_the_middle_is_told_and_leaves_only_what_can_be_swept() {
    let place = Place::new();
    let (mut vm, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    let pid = vm.pid();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap()
    });
    let taken = place.take(&mut vm, "s").await;
    assert!(killer.join().unwrap().success());
    match taken {
        Ok(_) => drop(SnapshotInfo::read(&place.snapshot("s")).unwrap()),
        Err(CommandError::Ended(VmExit::Failed { reason, .. })) => assert!(reason.contains("signal 9"), "{reason}"),
        Err(other) => panic!("{other:?}"),
    }
    vmm::sweep_unfinished_snapshots(place.snapshot("s").parent().unwrap()).unwrap();
    assert!(place.snapshots().iter().all(|name| name == "s"));
}
