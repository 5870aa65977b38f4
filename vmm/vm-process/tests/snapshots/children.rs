//! What runs on, and what runs again.

use std::fs;
use std::time::Duration;

use vmm::{MemoryMib, SnapshotInfo, SnapshotPurpose, SnapshotRequest, TemplateUse, VmSpec};

use crate::guests::{identity, python, shell};
use crate::place::{Place, ping, running};

#[tokio::test]
async fn a_paused_guest_says_nothing_until_it_is_resumed() {
    let place = Place::new();
    let (mut vm, guest) = running(&place.spec("vm", TemplateUse::Clone)).await;
    vm.pause().await.unwrap();
    vm.pause().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), guest.ping()).await.is_err());
    vm.resume().await.unwrap();
    ping(&guest).await;
}

#[tokio::test]
async fn children_run_beside_their_source_and_outlive_it_and_the_snapshot() {
    let place = Place::new();
    let (mut source, guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    ping(&guest).await;
    let taken = place.take(&mut source, "s").await.unwrap();
    println!("{taken:?}");
    assert!(taken.touched_bytes > 0 && taken.disk_layers == 1, "{taken:?}");
    let info = SnapshotInfo::read(&place.snapshot("s")).unwrap();
    assert_eq!((info.memory.mib(), info.vcpus.get(), info.disks.len()), (256, 1, 1));

    let (mut one, one_guest) = running(&place.child("one", "s")).await;
    let (mut two, two_guest) = running(&place.child("two", "s")).await;
    for guest in [&guest, &one_guest, &two_guest] {
        ping(guest).await;
    }
    let messages = fs::read_to_string(place.folder.path().join("one/qemu.log")).unwrap();
    assert_eq!(messages, "", "QEMU has nothing to complain about");

    let taken = place.take(&mut two, "of-a-child").await.unwrap();
    assert_eq!(taken.disk_layers, 2);
    let again = place.take(&mut source, "again").await.unwrap();
    assert_eq!(again.disk_layers, 2);
    drop((source, guest));
    fs::remove_dir_all(place.snapshot("s")).unwrap();
    fs::remove_dir_all(place.folder.path().join("source")).unwrap();
    ping(&one_guest).await;
    // What its memory is a copy of has no name any more.
    place.take(&mut one, "of-an-orphan").await.unwrap();
    let (_four, four_guest) = running(&place.child("four", "of-an-orphan")).await;
    ping(&four_guest).await;
    let (_three, three_guest) = running(&place.child("three", "of-a-child")).await;
    ping(&three_guest).await;
    ping(&two_guest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_children_are_restored_at_once() {
    let place = Place::new();
    let (mut source, _guest) = running(&place.spec("source", TemplateUse::Clone)).await;
    place.take(&mut source, "s").await.unwrap();
    let template = TemplateUse::Snapshot { folder: place.snapshot("s"), verify: false };
    let specs: Vec<VmSpec> = (0..10).map(|n| place.spec(&format!("child-{n}"), template.clone())).collect();
    let children: Vec<_> = specs.into_iter().map(|spec| tokio::spawn(async move { running(&spec).await })).collect();
    let mut alive = Vec::new();
    for child in children {
        alive.push(child.await.unwrap());
    }
    for (_, guest) in &alive {
        ping(guest).await;
    }
}

#[tokio::test]
async fn a_guest_that_was_booted_can_be_saved_and_one_that_was_left_paused_saves_again() {
    let place = Place::new();
    let (mut source, guest) = running(&place.spec("source", TemplateUse::Never)).await;
    let request =
        SnapshotRequest { folder: place.snapshot("s"), leave_paused: true, purpose: SnapshotPurpose::Children(1) };
    source.snapshot(request).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), guest.ping()).await.is_err());
    place.take(&mut source, "paused").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), guest.ping()).await.is_err());
    source.resume().await.unwrap();
    ping(&guest).await;
    // What was not to last has no checksum to verify.
    let unverified = TemplateUse::Snapshot { folder: place.snapshot("s"), verify: false };
    for child in [place.spec("child-of-s", unverified), place.child("child-of-paused", "paused")] {
        let (_child, guest) = running(&child).await;
        ping(&guest).await;
    }
}

#[tokio::test]
async fn disk_and_memory_of_each_child_are_the_sources_at_that_moment_and_then_its_own() {
    let image = python().await;
    let place = Place::new();
    let spec = |name: &str, template| VmSpec {
        memory: MemoryMib::new(1024).unwrap(),
        root_disk: image.clone(),
        ..place.spec(name, template)
    };
    let (mut source, guest) = running(&place.on_throwaway_disk(spec("source", TemplateUse::Clone))).await;
    guest.adopt(identity()).await.unwrap();
    // 200 MiB in memory, and something on the disk.
    shell(&guest, "dd if=/dev/urandom of=/dev/shm/many bs=1M count=200 2>/dev/null").await;
    shell(&guest, "echo before > /file; dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sync").await;
    let sums = shell(&guest, "cat /file; sha256sum /dev/shm/many /big").await;
    let taken = place.take(&mut source, "s").await.unwrap();
    println!("200 MiB touched: {taken:?}");
    assert!(taken.touched_bytes > 200 << 20, "{taken:?}");
    let quick =
        SnapshotRequest { folder: place.snapshot("quick"), leave_paused: false, purpose: SnapshotPurpose::Children(1) };
    println!("200 MiB touched, for a fork: {:?}", source.snapshot(quick).await.unwrap());
    assert!(taken.paused_us < 2_000_000, "{taken:?}");

    shell(&guest, "echo source > /file; rm /big; sync").await;
    let (_one, one) = running(&spec("one", place.child("one", "s").template)).await;
    let (mut two_vm, two) = running(&spec("two", place.child("two", "s").template)).await;
    for child in [&one, &two] {
        assert_eq!(shell(child, "cat /file; sha256sum /dev/shm/many /big").await, sums);
    }
    shell(&one, "echo one > /file; sync").await;
    shell(&two, "echo two > /file; rm /dev/shm/many; sync").await;
    let taken = place.take(&mut two_vm, "of-two").await.unwrap();
    println!("200 MiB inherited: {taken:?}");
    let (_three, three) = running(&spec("three", place.child("three", "of-two").template)).await;
    for (guest, expected) in [(&guest, "source"), (&one, "one"), (&two, "two"), (&three, "two")] {
        assert_eq!(shell(guest, "echo 3 > /proc/sys/vm/drop_caches; cat /file").await, expected);
    }
    assert_eq!(shell(&three, "sha256sum /big").await, sums.lines().last().unwrap());
}
