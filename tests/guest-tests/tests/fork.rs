//! Snapshots, forks, pauses: what goes on, what is new, what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_rig::{Driver, Feature, Rig, eventually, kill, supported};

const PATIENCE: Duration = Duration::from_secs(120);
const COUNTER: &str = include_str!("guest/counter.py");

fn create(rig: &Rig, request: &Value) -> String {
    let answer = rig.call("sandbox::create", request);
    answer["sandbox_id"].as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
}

fn sh(rig: &Rig, id: &str, script: &str) -> String {
    let answer = rig.call("sandbox::exec", &json!({ "sandbox_id": id, "argv": ["sh", "-c", script] }));
    assert_eq!(answer["exit_code"], 0, "{script}: {answer}");
    answer["stdout"].as_str().expect("text").to_owned()
}

fn ids(answer: &Value) -> Vec<String> {
    serde_json::from_value(answer["sandbox_ids"].clone()).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn code(error: &Value) -> &str {
    error["code"].as_str().unwrap_or("no code")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A sandbox in which the counter counts.
fn counting(rig: &Rig, request: &Value) -> String {
    let id = create(rig, request);
    let write = json!({ "sandbox_id": id, "path": "/tmp/counter.py", "content": COUNTER });
    let _ = rig.call("sandbox::fs::write", &write);
    sh(rig, &id, "nohup python3 /tmp/counter.py >/dev/null 2>&1 &");
    let counts = eventually(PATIENCE, || (count(rig, &id) > 1).then_some(()));
    assert!(counts.is_some(), "it does not count\n{}", rig.log());
    id
}

fn count(rig: &Rig, id: &str) -> u64 {
    sh(rig, id, "cat /tmp/count 2>/dev/null || echo 0").trim().parse().expect("a number")
}

/// What `ask` answers for each, some at a time.
fn each<T: Send>(of: &[String], ask: impl Fn(&str) -> T + Sync) -> Vec<T> {
    let ask = &ask;
    let shares: Vec<&[String]> = of.chunks(of.len().div_ceil(8).max(1)).collect();
    thread::scope(|scope| {
        let asking: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.iter().map(|id| ask(id)).collect::<Vec<T>>()))
            .collect();
        asking.into_iter().flat_map(|thread| thread.join().expect("an answer")).collect()
    })
}

#[test]
fn a_hundred_children_are_a_hundred_machines_and_go_on_counting() {
    if !supported(Feature::Snapshots) {
        return;
    }
    let rig = Rig::builder().sandboxes_with("max_concurrent_sandboxes: 101").start();
    let source = counting(&rig, &json!({ "image": "python", "memory_mb": 192, "network": true }));
    let before = count(&rig, &source);
    let children = ids(&rig.call("sandbox::fork", &json!({ "sandbox_id": source, "count": 100 })));
    assert_eq!(children.len(), 100);
    let identity = "cat /proc/sys/kernel/random/uuid /etc/machine-id /sys/class/net/eth0/address; hostname; date +%s; \
        dd if=/dev/urandom bs=16 count=10 2>/dev/null | od -An -v -w16 -tx8 | tr -d ' '";
    let answers = each(&children, |id| {
        let earliest = unix_seconds();
        let said = sh(&rig, id, identity);
        (earliest, said, unix_seconds(), count(&rig, id))
    });
    let mut seen: [BTreeSet<String>; 4] = Default::default();
    let mut drawn = BTreeSet::new();
    for (earliest, said, latest, count) in &answers {
        let lines: Vec<&str> = said.lines().collect();
        for (set, line) in seen.iter_mut().zip(&lines) {
            set.insert((*line).to_owned());
        }
        let clock: u64 = lines[4].parse().expect("seconds");
        assert!((earliest.saturating_sub(1)..=latest + 1).contains(&clock), "{clock} is not in {earliest}..{latest}");
        drawn.extend(lines[5..].iter().map(|line| (*line).to_owned()));
        assert!(*count >= before, "it counted to {before} before the fork, and starts again at {count}");
    }
    for (what, set) in ["uuid", "machine-id", "MAC", "host name"].iter().zip(&seen) {
        assert_eq!(set.len(), 100, "{what}: {set:?}");
    }
    assert_eq!(drawn.len(), 1000, "draws of /dev/urandom that are equal");
    // The program goes on in each, with what it has in memory, and each was told.
    let later = each(&children, |id| (count(&rig, id), sh(&rig, id, "cat /tmp/told")));
    for ((_, _, _, earlier), ((now, told), id)) in answers.iter().zip(later.iter().zip(&children)) {
        let more = now > earlier || eventually(PATIENCE, || (count(&rig, id) > *earlier).then_some(())).is_some();
        assert!(more, "{id} stands at {earlier}");
        let (told_at, event) = told.split_once(' ').expect("a count and the event");
        assert!(told_at.parse::<u64>().expect("a number") >= before, "{told}");
        let event: Value = serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!((&event["id"], &event["parent"]), (&json!(id), &json!(source)), "{event}");
    }
    assert!(count(&rig, &source) > before, "the source stands still");
    // Each has a link of its own: its gateway tells it where it is.
    let resolved = "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b\"x\", \
        (open(\"/etc/resolv.conf\").read().split()[1], 9))'; \
        i=0; until grep -q ' 0x2 ' /proc/net/arp; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done";
    for id in [&source, &children[0], &children[99]] {
        assert_eq!(sh(&rig, id, resolved), "");
    }
    let forked = rig.log().matches("start=\"forked\"").count();
    assert!(forked == 100 || std::env::var_os("III_TEST_FORKS").is_none(), "{forked} of 100 are forks of the process");
}

#[test]
fn the_sources_streams_survive_and_disks_part_ways() {
    if !supported(Feature::Snapshots) {
        return;
    }
    let rig = Rig::builder().sandboxes().start();
    let source = counting(&rig, &json!({ "image": "python", "memory_mb": 256 }));
    sh(&rig, &source, "echo before > /srv/file; mkdir /srv/folder");
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; sleep 0.001; done";
    let (said, children) = thread::scope(|scope| {
        let printing = scope.spawn(|| sh(&rig, &source, script));
        let mut children = Vec::new();
        for _ in 0..3 {
            children.extend(ids(&rig.call("sandbox::fork", &json!({ "sandbox_id": source }))));
        }
        (printing.join().expect("its output"), children)
    });
    let expected: String = (1..=3000).map(|number| format!("line {number}\n")).collect();
    assert!(said == expected, "lost or doubled: {} bytes of {}", said.len(), expected.len());
    for (number, id) in children.iter().enumerate() {
        assert_eq!(sh(&rig, id, "cat /srv/file"), "before\n");
        sh(&rig, id, &format!("echo {number} > /srv/file; echo {number} > /srv/folder/own; sync"));
    }
    assert_eq!(sh(&rig, &source, "cat /srv/file; ls /srv/folder"), "before\n");
    for (number, id) in children.iter().enumerate() {
        assert_eq!(sh(&rig, id, "cat /srv/file /srv/folder/own"), format!("{number}\n{number}\n"));
    }
    // A child of a child, after the ones between have ended.
    let grandchild = ids(&rig.call("sandbox::fork", &json!({ "sandbox_id": children[1] }))).remove(0);
    for id in children.iter().chain([&source]) {
        let _ = rig.call("sandbox::stop", &json!({ "sandbox_id": id, "wait": true }));
    }
    let so_far = count(&rig, &grandchild);
    assert_eq!(
        sh(&rig, &grandchild, "cat /srv/file; grep -o 'generation...[0-9]*' /run/iii/fork.json | tr -dc 0-9"),
        "1\n2"
    );
    // Both files are mounts by now, of a renewal before.
    let names = "test $(hostname) = $(cat /etc/hostname) && grep -c \" $(hostname)$\" /etc/hosts";
    assert_eq!(sh(&rig, &grandchild, names), "1\n");
    assert!(eventually(PATIENCE, || (count(&rig, &grandchild) > so_far).then_some(())).is_some(), "it stands still");
    let left = eventually(PATIENCE, || (rig.machines().len() == 1).then_some(()));
    assert!(left.is_some(), "{:#?}", rig.machines());
}

#[test]
fn a_snapshot_outlives_its_sandbox_and_the_daemon_and_is_an_image() {
    if !supported(Feature::Snapshots) {
        return;
    }
    let rig = Rig::builder().sandboxes().start();
    let source = counting(&rig, &json!({ "image": "python", "memory_mb": 256 }));
    let taken = rig.call("sandbox::snapshot", &json!({ "sandbox_id": source, "name": "warm" }));
    assert!(taken["paused_ms"].as_f64().is_some_and(|paused| paused > 0.0), "{taken}");
    let at = count(&rig, &source);
    let again = rig.trigger("sandbox::snapshot", &json!({ "sandbox_id": source, "name": "warm" })).expect_err("taken");
    assert_eq!(code(&again), "S001", "{again}");
    let daemon = rig.family_named("iii-daemon sandboxes").into_iter().next().expect("the daemon");
    kill(daemon.pid, Signal::SIGKILL);
    let listed = eventually(PATIENCE, || rig.trigger("snapshot::list", &json!({})).ok()).expect("the daemon is back");
    let rows = listed["snapshots"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[0]["name"], &rows[0]["memory_mb"]), (1, &json!("warm"), &json!(256)), "{listed}");

    let restored = ids(&rig.call("sandbox::restore", &json!({ "snapshot": "warm", "count": 2, "env": ["WHO=child"] })));
    assert_eq!(restored.len(), 2);
    for id in &restored {
        assert_eq!(sh(&rig, id, "echo $WHO"), "child\n");
        assert!(count(&rig, id) <= at + 10, "it went on where the snapshot was taken");
    }
    let ran = rig.call(
        "sandbox::run",
        &json!({ "image": "snapshot:warm", "lang": "python", "code": "print(open('/tmp/count').read() != '')" }),
    );
    assert_eq!(ran["stdout"], "True\n", "{ran}");
    let id = taken["snapshot_id"].as_str().expect("an id");
    let created = create(&rig, &json!({ "image": format!("snapshot:{id}") }));
    let wrong =
        rig.trigger("sandbox::create", &json!({ "image": "snapshot:warm", "memory_mb": 512 })).expect_err("256");
    assert_eq!(code(&wrong), "S001", "{wrong}");
    assert!(wrong.to_string().contains("512"), "{wrong}");

    // Deleted while in use: those that run go on, with their memory and their disks.
    assert_eq!(rig.call("snapshot::delete", &json!({ "snapshot": "warm" }))["deleted"], true);
    for id in restored.iter().chain([&created]) {
        let so_far = count(&rig, id);
        sh(&rig, id, "dd if=/dev/zero of=/srv/big bs=1M count=20 2>/dev/null; sync");
        assert!(eventually(PATIENCE, || (count(&rig, id) > so_far).then_some(())).is_some(), "{id} stands still");
    }
    let gone = rig.trigger("sandbox::restore", &json!({ "snapshot": "warm" })).expect_err("deleted");
    assert_eq!(code(&gone), "S500", "{gone}");
    assert_eq!(rig.call("snapshot::list", &json!({}))["snapshots"], json!([]));
}

/// The VM's part of the only snapshot.
fn files(rig: &Rig) -> PathBuf {
    let mut folders = fs::read_dir(rig.home().join("snapshots")).expect("snapshots").flatten();
    folders.next().expect("a snapshot").path().join("vm")
}

#[test]
fn an_unfit_and_a_damaged_snapshot_are_refused_by_what_is_wrong() {
    if !supported(Feature::Snapshots) {
        return;
    }
    let rig = Rig::builder().sandboxes().start();
    let source = create(&rig, &json!({ "image": "python", "memory_mb": 256 }));
    let _ = rig.call("sandbox::snapshot", &json!({ "sandbox_id": source, "name": "s" }));
    let refused = |what: &str, expected: &str| {
        let error = rig.trigger("sandbox::restore", &json!({ "snapshot": "s" })).expect_err(what);
        assert_eq!(code(&error), expected, "{what}: {error}");
        error.to_string()
    };
    let vm = files(&rig);
    let about = fs::read_to_string(vm.join("snapshot.json")).expect("snapshot.json");
    let mut other: Value = serde_json::from_str(&about).expect("JSON");
    other["key"]["kit"]["kernel_sha256"] = json!("0000");
    fs::write(vm.join("snapshot.json"), other.to_string()).expect("written");
    assert!(refused("another kernel", "S501").contains("kernel"));
    fs::write(vm.join("snapshot.json"), &about).expect("written");

    let memory = fs::read(vm.join("memory")).expect("memory");
    let mut damaged = memory.clone();
    let place = damaged.iter().rposition(|byte| *byte != 0).expect("not all zeros");
    damaged[place] ^= 1;
    fs::write(vm.join("memory"), &damaged).expect("written");
    assert!(refused("one bit of memory", "S502").contains("memory"));
    fs::write(vm.join("memory"), &memory[..memory.len() / 2]).expect("written");
    refused("half of the memory", "S502");
    fs::write(vm.join("memory"), &memory).expect("written");
    let state = fs::read(vm.join("state")).expect("state");
    fs::write(vm.join("state"), &state[..state.len() / 2]).expect("written");
    refused("half of the state", "S502");
    fs::write(vm.join("state"), &state).expect("written");
    fs::write(vm.join("snapshot.json"), "{").expect("written");
    refused("a garbled description", "S502");
    fs::write(vm.join("snapshot.json"), &about).expect("written");
    let whole = ids(&rig.call("sandbox::restore", &json!({ "snapshot": "s" })));
    assert_eq!(sh(&rig, &whole[0], "echo whole"), "whole\n");
    let left = eventually(PATIENCE, || (rig.machines().len() == 2).then_some(()));
    assert!(left.is_some(), "{:#?}", rig.machines());
}

#[test]
fn a_paused_sandbox_stands_still_and_keeps_the_right_time() {
    if !supported(Feature::Snapshots) {
        return;
    }
    let rig = Rig::builder().sandboxes_with("default_idle_timeout_secs: 6").start();
    let id = counting(&rig, &json!({ "image": "python", "memory_mb": 256 }));
    assert_eq!(rig.call("sandbox::pause", &json!({ "sandbox_id": id }))["paused"], true);
    let refused = rig.trigger("sandbox::exec", &json!({ "sandbox_id": id, "argv": ["true"] })).expect_err("paused");
    assert_eq!(code(&refused), "S005", "{refused}");
    let refused = rig.trigger("sandbox::fork", &json!({ "sandbox_id": id })).expect_err("paused");
    assert_eq!(code(&refused), "S005", "{refused}");
    // Longer than the idle limit: it is not idle, it stands still.
    thread::sleep(Duration::from_secs(8));
    assert_eq!(rig.call("sandbox::list", &json!({}))["sandboxes"][0]["paused"], true);
    let at = unix_seconds();
    let _ = rig.call("sandbox::resume", &json!({ "sandbox_id": id }));
    let clock: u64 = sh(&rig, &id, "date +%s").trim().parse().expect("seconds");
    assert!((at.saturating_sub(1)..=unix_seconds() + 1).contains(&clock), "the guest's clock says {clock}, ours {at}");
    let so_far = count(&rig, &id);
    assert!(eventually(PATIENCE, || (count(&rig, &id) > so_far).then_some(())).is_some(), "it does not go on");
}

#[test]
fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    let rig = Rig::builder().sandboxes_with("max_concurrent_sandboxes: 3").start();
    let id = create(&rig, &json!({ "image": "python", "memory_mb": 256 }));
    let refused = |function: &str, request: Value, expected: &str| {
        let error = rig.trigger(function, &request).expect_err(function);
        assert_eq!(code(&error), expected, "{function} {request}: {error}");
    };
    refused("sandbox::fork", json!({ "sandbox_id": id, "count": 0 }), "S001");
    refused("sandbox::fork", json!({ "sandbox_id": id, "count": 3 }), "S400");
    refused("sandbox::fork", json!({ "sandbox_id": "x" }), "S001");
    refused("sandbox::fork", json!({ "sandbox_id": "00000000-0000-4000-8000-000000000000" }), "S002");
    refused("sandbox::snapshot", json!({ "sandbox_id": id, "name": "../../etc" }), "S001");
    refused("sandbox::restore", json!({ "snapshot": "../../etc" }), "S500");
    refused("snapshot::delete", json!({ "snapshot": "nothing" }), "S500");
    refused("sandbox::create", json!({ "image": "snapshot:nothing" }), "S500");
    refused("sandbox::pause", json!({ "sandbox_id": "00000000-0000-4000-8000-000000000000" }), "S002");
    if Driver::this().lacks(Feature::Snapshots).is_some() {
        for function in ["sandbox::fork", "sandbox::snapshot", "sandbox::pause"] {
            refused(function, json!({ "sandbox_id": id }), "S503");
        }
    }
    assert_eq!(sh(&rig, &id, "echo still here"), "still here\n");
    assert_eq!(rig.machines().len(), 1, "{:#?}", rig.machines());
    assert_eq!(fs::read_dir(rig.home().join("snapshots")).expect("snapshots").count(), 0);
}
