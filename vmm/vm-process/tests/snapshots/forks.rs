//! Children forked from their source's process: our own QEMU can.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use guest_client::Guest;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm::{MemoryMib, SnapshotPurpose, SnapshotRequest, TemplateUse, VcpuCount, Vm, VmEvent, VmExit, VmSpec, VmStart};

use crate::guests::{identity, python, shell};
use crate::place::{III_VM, PATIENCE, Place, ping, qemu_forks, running};

/// Says so when it cannot, past the test's own output, which nobody sees; fails where `III_TEST_FORKS` says that it must.
fn can_fork() -> bool {
    let can = qemu_forks();
    if !can {
        assert!(std::env::var_os("III_TEST_FORKS").is_none(), "this QEMU cannot fork a machine");
        let reason = "not run: this QEMU cannot fork a machine (`make qemu kit` makes one that can)\n";
        std::io::stderr().write_all(reason.as_bytes()).unwrap();
    }
    can
}

fn for_children(place: &Place, name: &str, count: u32) -> SnapshotRequest {
    SnapshotRequest { folder: place.snapshot(name), leave_paused: false, purpose: SnapshotPurpose::Children(count) }
}

fn of(place: &Place, name: &str) -> TemplateUse {
    TemplateUse::Snapshot { folder: place.snapshot(name), verify: false }
}

async fn forked(spec: &VmSpec) -> (Vm, Guest) {
    let (mut vm, channel) = Vm::spawn(spec, Path::new(III_VM)).await.unwrap();
    match tokio::time::timeout(PATIENCE, vm.next_event()).await.expect("the VM says something") {
        VmEvent::Running { start: VmStart::Forked, .. } => (vm, Guest::connect(channel).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// There is no nursery any more.
async fn refused(spec: &VmSpec) {
    let (mut vm, _channel) = Vm::spawn(spec, Path::new(III_VM)).await.unwrap();
    match tokio::time::timeout(PATIENCE, vm.next_event()).await.expect("the VM says something") {
        VmEvent::Exited(VmExit::Failed { reason, hint, .. }) => {
            assert!(reason.contains("takes no more requests") && hint.is_some(), "{reason} ({hint:?})");
        }
        other => panic!("{other:?}"),
    }
}

/// Source, nursery and children: each has the source's command line, which names a file of `place`.
fn processes(place: &Place) -> BTreeSet<i32> {
    let name = place.folder.path().join("source/scratch.ext4");
    let name = name.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(name)))
        .collect()
}

/// Its sockets and pipes by number, and whether each blocks.
fn wires(pid: i32) -> BTreeMap<String, bool> {
    let is_wire = |link: &str| link.starts_with("socket:") || link.starts_with("pipe:");
    let blocks = |number: &str| {
        let about = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap() & OFlag::O_NONBLOCK.bits() == 0
    };
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().into_string().unwrap();
            let link = fs::read_link(entry.path()).ok()?;
            is_wire(link.to_str()?).then(|| (number.clone(), blocks(&number)))
        })
        .collect()
}

async fn until_processes(place: &Place, count: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while processes(place).len() != count {
        assert!(tokio::time::Instant::now() < deadline, "{:?}, not {count}", processes(place));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_disk_and_programs_go_on_in_each_child_and_are_then_its_own() {
    if !can_fork() {
        return;
    }
    let image = python().await;
    let place = Place::new();
    let spec = |name: &str, template| VmSpec {
        memory: MemoryMib::new(512).unwrap(),
        vcpus: VcpuCount::new(2).unwrap(),
        root_disk: image.clone(),
        ..place.spec(name, template)
    };
    let (mut source, guest) = running(&place.on_throwaway_disk(spec("source", TemplateUse::Clone))).await;
    guest.adopt(identity()).await.unwrap();
    shell(&guest, "dd if=/dev/urandom of=/dev/shm/many bs=1M count=50 2>/dev/null").await;
    shell(&guest, "echo source > /file; dd if=/dev/urandom of=/big bs=1M count=5 2>/dev/null; sync").await;
    shell(&guest, "(n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; sleep 0.05; done) >/dev/null 2>&1 &").await;
    let sums = shell(&guest, "sha256sum /dev/shm/many /big").await;
    source.snapshot(for_children(&place, "s", 2)).await.unwrap();
    shell(&guest, "rm /big /dev/shm/many; sync").await;

    let (mut one_vm, one) = forked(&spec("one", of(&place, "s"))).await;
    let (_two_vm, two) = forked(&spec("two", of(&place, "s"))).await;
    for (child, name) in [(&one, "one"), (&two, "two")] {
        assert_eq!(shell(child, "cat /file; sha256sum /dev/shm/many /big").await, format!("source\n{sums}"));
        shell(child, &format!("echo {name} > /file; sync")).await;
        shell(child, "was=$(cat /dev/shm/n); while [ $(cat /dev/shm/n) -lt $((was+2)) ]; do sleep 0.05; done").await;
    }
    // Its own children: one from its process, one from files.
    one_vm.snapshot(for_children(&place, "of-one", 1)).await.unwrap();
    place.take(&mut one_vm, "kept").await.unwrap();
    shell(&one, "echo later > /file; rm /big; sync").await;
    let (_three_vm, three) = forked(&spec("three", of(&place, "of-one"))).await;
    let (_four_vm, four) = running(&spec("four", place.child("four", "kept").template)).await;
    for grandchild in [&three, &four] {
        assert_eq!(shell(grandchild, "cat /file; sha256sum /dev/shm/many /big").await, format!("one\n{sums}"));
    }
    for (guest, expected) in [(&guest, "source"), (&one, "later"), (&two, "two"), (&three, "one")] {
        assert_eq!(shell(guest, "echo 3 > /proc/sys/vm/drop_caches; cat /file").await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_child_is_told_with_its_cause_and_nothing_is_left() {
    if !can_fork() {
        return;
    }
    let place = Place::new();
    let (mut source, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    source.snapshot(for_children(&place, "s", 3)).await.unwrap();
    until_processes(&place, 2).await;

    let qemu = *processes(&place).first().unwrap();

    // Killed: QEMU, the process that supervises it, and one that is told to end.
    let before = processes(&place);
    let (mut one, guest) = forked(&place.spec("one", of(&place, "s"))).await;
    ping(&guest).await;
    let child = *processes(&place).difference(&before).next().unwrap();
    // A wire that blocked would stop the machine, and whoever looks after it. A child has a leash more.
    let (of_source, mut of_child) = (wires(qemu), wires(child));
    of_child.retain(|number, _| of_source.contains_key(number));
    assert!(of_source.len() >= 5 && of_child == of_source, "{of_source:?}, not {of_child:?}");
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    match tokio::time::timeout(PATIENCE, one.wait()).await.unwrap() {
        VmExit::Failed { reason, .. } => assert!(reason.contains("signal 9"), "{reason}"),
        other => panic!("{other:?}"),
    }
    until_processes(&place, 2).await;

    let (two, guest) = forked(&place.spec("two", of(&place, "s"))).await;
    ping(&guest).await;
    kill(Pid::from_raw(two.pid().cast_signed()), Signal::SIGKILL).unwrap();
    until_processes(&place, 2).await;

    let (three, guest) = forked(&place.spec("three", of(&place, "s"))).await;
    ping(&guest).await;
    drop(three);
    // All that were expected were born: the nursery ends with the last of them.
    until_processes(&place, 1).await;

    refused(&place.spec("four", of(&place, "s"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_outlive_their_source_and_later_ones_are_refused() {
    if !can_fork() {
        return;
    }
    let place = Place::new();
    let (mut source, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    source.snapshot(for_children(&place, "s", 9)).await.unwrap();
    let (mut one, guest) = forked(&place.spec("one", of(&place, "s"))).await;
    drop(source);
    // The nursery and its child.
    until_processes(&place, 2).await;
    ping(&guest).await;
    refused(&place.spec("two", of(&place, "s"))).await;
    ping(&guest).await;
    one.kill();
    one.wait().await;
    until_processes(&place, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_of_two_moments_are_born_by_turns() {
    if !can_fork() {
        return;
    }
    let image = python().await;
    let place = Place::new();
    let spec = |name: &str, template| VmSpec { root_disk: image.clone(), ..place.spec(name, template) };
    let (mut source, guest) = running(&place.on_throwaway_disk(spec("source", TemplateUse::Clone))).await;
    guest.adopt(identity()).await.unwrap();
    for moment in ["first", "second"] {
        shell(&guest, &format!("echo {moment} > /file")).await;
        source.snapshot(for_children(&place, moment, 2)).await.unwrap();
    }
    for (name, moment) in [("a", "first"), ("b", "second"), ("c", "first"), ("d", "second")] {
        let (_vm, guest) = forked(&spec(name, of(&place, moment))).await;
        assert_eq!(shell(&guest, "cat /file").await, moment);
    }
    until_processes(&place, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_lives_on_when_its_nursery_is_killed_and_ends_when_it_is_told() {
    if !can_fork() {
        return;
    }
    let place = Place::new();
    let (mut source, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    let before = processes(&place);
    source.snapshot(for_children(&place, "s", 2)).await.unwrap();
    let nursery = *processes(&place).difference(&before).next().unwrap();
    let (mut one, guest) = forked(&place.spec("one", of(&place, "s"))).await;
    kill(Pid::from_raw(nursery), Signal::SIGKILL).unwrap();
    until_processes(&place, 2).await;
    refused(&place.spec("two", of(&place, "s"))).await;
    ping(&guest).await;
    one.kill();
    assert_eq!(tokio::time::timeout(PATIENCE, one.wait()).await.unwrap(), VmExit::Stopped);
    until_processes(&place, 1).await;
}
