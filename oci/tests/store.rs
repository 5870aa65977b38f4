//! The store: what it finds, shares, replaces, and what is left when things go wrong.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;

use oci::{Digest, ImageRef, Phase, PullError, Refresh, RegistryOptions, Store, StoreOptions};
use support::reader::Image;
use support::{IMAGE_BYTES, Layer, Packing, World, fsck, program, skipped};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn sendable<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn an_image_is_made_once_found_again_and_the_same_every_time() {
    let world = World::new();
    let manifest = world.write(vec![Layer::base().file("a", "1")], Packing::Gzip);
    assert_eq!(world.store().find(&world.image()).await.unwrap(), None);
    let ready = sendable(world.ready()).await.unwrap();
    assert_eq!(ready.digest, manifest.digest);
    assert_eq!(ready.config.env, ["PATH=/bin"]);
    assert_eq!((ready.config.cmd, ready.config.user), (vec!["sh".to_owned()], Some("1000:1000".to_owned())));
    let metadata = std::fs::metadata(&ready.path).unwrap();
    assert_eq!(metadata.len(), IMAGE_BYTES);
    assert!(metadata.permissions().readonly());
    let found = world.store().find(&world.image()).await.unwrap().unwrap();
    assert_eq!((&found.path, &found.digest), (&ready.path, &ready.digest));
    assert_eq!(world.store().list().unwrap(), [found]);

    let first = Image::open(&ready.path).items;
    let head = |path: &std::path::Path| {
        use std::io::Read;
        let mut head = vec![0; 1 << 20];
        std::fs::File::open(path).unwrap().read_exact(&mut head).unwrap();
        Digest::of(&head)
    };
    let before = head(&ready.path);
    world.store().remove(&ready.digest).await.unwrap();
    world.assert_nothing_left();
    let again = world.ready().await.unwrap();
    assert!(Image::open(&again.path).items == first && head(&again.path) == before);
}

#[tokio::test]
async fn a_layout_that_was_built_anew_is_seen_and_one_that_is_gone_is_remembered() {
    let world = World::new();
    world.write(vec![Layer::base().file("a", "1")], Packing::Gzip);
    let first = world.ready().await.unwrap();
    world.write(vec![Layer::base().file("a", "2")], Packing::Gzip);
    let second = world.store().ensure(&world.image(), Refresh::IfMissing, &|_| ()).await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(Image::open(&second.path).text("a"), "2");
    std::fs::remove_dir_all(world.layout()).unwrap();
    let remembered = world.store().ensure(&world.image(), Refresh::IfMissing, &|_| ()).await.unwrap();
    assert_eq!(remembered.digest, second.digest);
    let error = world.ready().await.unwrap_err();
    assert_eq!(error.code(), "IMAGE_NOT_FOUND", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_the_work() {
    let world = World::new();
    world.write(vec![Layer::base().file("large", vec![3; 20 << 20])], Packing::Gzip);
    let store = world.store();
    let unpackers = Mutex::new(BTreeSet::new());
    let (image, unpackers) = (&world.image(), &unpackers);
    let all = (0..30).map(|caller| {
        let store = store.clone();
        async move {
            let watch = |now: oci::Progress| {
                if matches!(now.phase, Phase::Unpacking | Phase::Finishing) {
                    unpackers.lock().unwrap().insert(caller);
                }
            };
            store.ensure(image, Refresh::IfMissing, &watch).await.unwrap()
        }
    });
    let ready = futures_util::future::join_all(all).await;
    assert!(ready.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(unpackers.lock().unwrap().len() <= 1, "{unpackers:?}");
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(world.store_dir().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn damaged_blobs_and_wrong_diff_ids_leave_nothing() {
    let world = World::new();
    let manifest = world.write(vec![Layer::base().file("a", vec![1; 100_000])], Packing::Gzip);
    let path = world.blob_path(&manifest.layers[0]);
    let mut blob = std::fs::read(&path).unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 0xff;
    std::fs::write(&path, &blob).unwrap();
    let error = world.ready().await.unwrap_err();
    assert!(matches!(&error, PullError::DigestMismatch { what, .. } if what == "layer 1"), "{error}");
    world.assert_nothing_left();

    let tar = Layer::base().tar();
    world.write_packed(&[(tar, TAR)], &[Digest::of(b"something else")]);
    let error = world.ready().await.unwrap_err();
    assert!(matches!(&error, PullError::DigestMismatch { what, .. } if what == "unpacked layer 1"), "{error}");
    world.assert_nothing_left();

    let tar = Layer::base().tar();
    let id = Digest::of(&tar);
    world.write_packed(&[(tar, TAR)], &[id.clone(), id]);
    assert_eq!(world.ready().await.unwrap_err().code(), "MANIFEST_INVALID");
}

#[tokio::test]
async fn the_index_decides_by_platform_at_any_depth() {
    let world = World::new();
    let tar = Layer::base().file("me", "host").tar();
    let id = Digest::of(&tar);
    let host = oci::Platform::host();
    let manifest = world.write_manifest(&[(tar, TAR)], &[id]);
    let other = Digest::of(b"never read");
    let inner = world.index(&[
        (&other, None, Some(("linux", "z80"))),
        (&other, None, Some(("unknown", "unknown"))),
        (&manifest.digest, None, Some((&host.os, &host.architecture))),
    ]);
    let inner = world.blob(inner.as_bytes());
    world.write_index(&[(&inner, Some("nested"), None)]);
    assert_eq!(world.ready().await.unwrap().digest, manifest.digest);

    let foreign = world.index(&[(&other, None, Some(("linux", "z80"))), (&other, None, Some(("linux", "6502")))]);
    let foreign = world.blob(foreign.as_bytes());
    world.write_index(&[(&foreign, None, None)]);
    let text = world.ready().await.unwrap_err().to_string();
    assert!(text.contains("linux/6502, linux/z80") && text.contains(&host.to_string()), "{text}");
}

#[tokio::test]
async fn tags_and_pins_choose_and_unknown_ones_list_what_there_is() {
    let world = World::new();
    let make = |text: &str| {
        let tar = Layer::base().file("me", text).tar();
        let id = Digest::of(&tar);
        world.write_manifest(&[(tar, TAR)], &[id])
    };
    let (one, two) = (make("one"), make("two"));
    world.write_index(&[(&one.digest, Some("v1"), None), (&two.digest, Some("reg.example/app:v2"), None)]);
    let store = world.store();
    let ensure = async |suffix: &str| {
        let image = ImageRef::parse(&format!("oci:{}{suffix}", world.layout().display())).unwrap();
        store.ensure(&image, Refresh::IfMissing, &|_| ()).await
    };
    assert_eq!(ensure(":v1").await.unwrap().digest, one.digest);
    assert_eq!(ensure(":v2").await.unwrap().digest, two.digest);
    assert_eq!(ensure(&format!("@{}", two.digest)).await.unwrap().digest, two.digest);
    let text = ensure(":v3").await.unwrap_err().to_string();
    assert!(text.contains("v1, reg.example/app:v2"), "{text}");
    assert!(ensure("").await.unwrap_err().to_string().contains("name one of them"));
}

#[tokio::test]
async fn an_archive_of_docker_save_is_read() {
    let world = World::new();
    let layer = Layer::base().file("me", "archived").tar();
    let host = oci::Platform::host();
    let config = serde_json::json!({"architecture": host.architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]}});
    let entries = serde_json::json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["def/layer.tar"]}]);
    let archive = Layer::new()
        .file("abc/layer.tar", &layer)
        .symlink("def/layer.tar", "../abc/layer.tar")
        .file("c.json", config.to_string())
        .file("manifest.json", entries.to_string());
    let path = world.directory.path().join("app.tar");
    std::fs::write(&path, archive.tar()).unwrap();
    let store = world.store();
    for suffix in ["", ":app:1", ":1"] {
        let image = ImageRef::parse(&format!("docker-archive:{}{suffix}", path.display())).unwrap();
        let ready = store.ensure(&image, Refresh::Always, &|_| ()).await.unwrap();
        assert_eq!(Image::open(&ready.path).text("me"), "archived");
        fsck(&ready.path);
    }
    let image = ImageRef::parse(&format!("docker-archive:{}:other", path.display())).unwrap();
    let error = store.ensure(&image, Refresh::Always, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("it has: app:1"), "{error}");
}

#[tokio::test]
async fn what_a_dead_process_left_is_swept_and_what_a_live_one_makes_is_not() {
    let world = World::new();
    let _store = world.store();
    let tmp = world.store_dir().join("tmp");
    for name in ["work-dead", "work-alive"] {
        std::fs::create_dir(tmp.join(name)).unwrap();
        std::fs::write(tmp.join(name).join("layer-0"), "half").unwrap();
    }
    std::fs::write(tmp.join("half-written-tags"), "{").unwrap();
    let alive = std::fs::File::create(tmp.join("work-alive/lock")).unwrap();
    alive.lock().unwrap();
    world.store();
    assert!(!tmp.join("work-dead").exists() && !tmp.join("half-written-tags").exists());
    assert!(tmp.join("work-alive/layer-0").exists());
    drop(alive);
    world.store();
    assert!(!tmp.join("work-alive").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let world = World::new();
    world.write(vec![Layer::base().file("large", vec![3; 64 << 20])], Packing::Gzip);
    let (store, image) = (world.store(), world.image());
    let (started, mut unpacking) = tokio::sync::mpsc::channel(64);
    let report = move |now: oci::Progress| {
        let _ = started.try_send(now);
    };
    let pull = tokio::spawn(async move { store.ensure(&image, Refresh::IfMissing, &report).await });
    unpacking.recv().await.unwrap();
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    // The blocking part notices within one buffer; the lock says when it has.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(world.store_dir().join("tmp")).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < deadline, "the work goes on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    world.assert_nothing_left();
}

#[tokio::test]
async fn an_image_larger_than_its_disk_is_refused() {
    let world = World::new();
    world.write(vec![Layer::base().file("large", vec![3; 2 << 20])], Packing::Gzip);
    let options = StoreOptions { image_bytes: 1 << 20, registry: RegistryOptions::default() };
    let store = Store::open(&world.store_dir(), options).unwrap();
    let error = store.ensure(&world.image(), Refresh::Always, &|_| ()).await.unwrap_err();
    assert_eq!(error.code(), "IMAGE_TOO_LARGE", "{error}");
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_is_left() {
    let world = World::new();
    let mount = world.store_dir();
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new(program("mount")).args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&mount).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skipped("a full disk: a small file system cannot be mounted here (needs root)");
    }
    let noise: Vec<u8> = (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    world.write(vec![Layer::base().file("large", noise)], Packing::Gzip);
    let error = world.ready().await.unwrap_err();
    let left = ["sha256", "tmp"].map(|part| std::fs::read_dir(mount.join(part)).unwrap().count());
    Command::new("umount").arg(&mount).status().unwrap();
    assert_eq!((error.code(), left), ("NO_SPACE", [0, 0]), "{error}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn the_kernel_mounts_what_was_written() {
    let world = World::new();
    world.write(
        vec![Layer::base().file("etc/a", "kernel").hard_link("etc/b", "etc/a").symlink("etc/c", "a")],
        Packing::Zstd,
    );
    let ready = world.ready().await.unwrap();
    let target = world.directory.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&ready.path).arg(&target).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skipped("mounting an image: needs root, a loop device and a kernel with EROFS");
    }
    let read = ["a", "b", "c"].map(|name| std::fs::read_to_string(target.join("etc").join(name)));
    let links = std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(target.join("etc/b")).unwrap());
    Command::new("umount").arg(&target).status().unwrap();
    assert!(read.into_iter().all(|text| text.is_ok_and(|text| text == "kernel")));
    assert_eq!(links, 2);
}
