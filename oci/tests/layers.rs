//! Layers that lie, climb, hide and replace each other: merged as the specification says, or refused.

mod support;

use std::io::Write;

use support::reader::Image;
use support::{Layer, Packing, World, chain, fsck};
use tar::{EntryType, Header};

async fn merge(layers: Vec<Layer>) -> Image {
    let world = World::new();
    world.write(layers, Packing::Gzip);
    let ready = world.ready().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    fsck(&ready.path);
    Image::open(&ready.path)
}

async fn refusal(layers: Vec<Layer>) -> String {
    let world = World::new();
    world.write(layers, Packing::Gzip);
    let error = world.ready().await.expect_err("refused");
    world.assert_nothing_left();
    chain(&error)
}

#[tokio::test]
async fn all_packings_give_the_same_tree() {
    let mut digests = Vec::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let world = World::new();
        world.write(vec![Layer::base().file("etc/motd", "hello"), Layer::new().file("etc/issue", "x")], packing);
        let image = Image::open(&world.ready().await.unwrap().path);
        assert_eq!((image.text("etc/motd"), image.text("etc/issue")), ("hello".into(), "x".into()));
        digests.push(image.items);
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn a_link_planted_by_one_layer_leads_the_next_one_nowhere_outside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let target = outside.path().to_str().unwrap();
    let inside = target.trim_start_matches('/');
    let image = merge(vec![
        Layer::base().symlink("out", target).symlink("up", "../../../../.."),
        Layer::new().file("out/victim", "written").file("out/.wh.other", "").file("up/at-root", "1"),
        Layer::new().file("out/.wh.victim", ""),
    ])
    .await;
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(image.has(inside) && !image.has(&format!("{inside}/victim")));
    assert_eq!(image.text("at-root"), "1");
    assert_eq!(image.text("out"), target, "the link itself is as it was");
}

#[tokio::test]
async fn parents_resolve_through_relative_and_chained_links() {
    let image = merge(vec![
        Layer::base().dir("usr/lib", 0o755).symlink("lib", "usr/lib").symlink("usr/lib64", "../lib"),
        Layer::new().file("usr/lib64/a.so", "a").file("lib/b.so", "b"),
    ])
    .await;
    assert_eq!((image.text("usr/lib/a.so"), image.text("usr/lib/b.so")), ("a".into(), "b".into()));
    assert!(
        refusal(vec![Layer::base().symlink("a", "b").symlink("b", "a").file("a/x", "")])
            .await
            .contains("too many symbolic")
    );
}

#[tokio::test]
async fn paths_with_dots_are_refused_and_leading_slashes_mean_nothing() {
    for path in ["../evil", "a/../../evil", "/../evil", "./../evil", ".."] {
        let text = refusal(vec![Layer::base().file(path, "x")]).await;
        assert!(text.contains("has a `..`"), "{path}: {text}");
    }
    assert!(refusal(vec![Layer::base().hard_link("passwd", "../../etc/passwd")]).await.contains("has a `..`"));
    let image = merge(vec![Layer::base().file("/etc/a", "1").file("./etc/b", "2").file("//etc/./c", "3")]).await;
    assert_eq!((image.text("etc/a"), image.text("etc/b"), image.text("etc/c")), ("1".into(), "2".into(), "3".into()));
}

#[tokio::test]
async fn whiteouts_remove_what_is_below_and_only_that() {
    let image = merge(vec![
        Layer::base()
            .file("a/old", "1")
            .file("a/kept", "1")
            .dir("tree/deep", 0o755)
            .file("tree/deep/x", "1")
            .file("b", "1"),
        Layer::new()
            .file("a/.wh.old", "")
            .file("a/.wh.absent", "")
            .file("b", "2")
            .file(".wh.b", "")
            .file("tree/deep/new", "2")
            .file(".wh.tree", "")
            .file(".wh..wh.plnk/1.2", "")
            .file("no/such/.wh.dir", ""),
    ])
    .await;
    assert!(!image.has("a/old") && image.has("a/kept") && !image.has("a/.wh.old") && !image.has("no"));
    assert_eq!(image.text("b"), "2", "a whiteout does not remove what its own layer brings, in any order");
    assert!(image.has("tree/deep/new") && !image.has("tree/deep/x"));
    assert!(image.paths().iter().all(|path| !path.contains(".wh.")));
}

/// Where the file system punches holes, as Linux's own do.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_later_layer_removes_takes_no_disk_space() {
    // Of no pattern: some file systems compress.
    let mut state = 1_u64;
    let large: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(4 << 20)
    .collect();
    let mut used = Vec::new();
    for upper in [Layer::new().file("new", "1"), Layer::new().file("new", "1").file(".wh.large", "")] {
        let world = World::new();
        world.write(vec![Layer::base().file("large", &large).file("small", "kept"), upper], Packing::Gzip);
        let ready = world.ready().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        fsck(&ready.path);
        let image = Image::open(&ready.path);
        assert_eq!((image.text("new"), image.text("small")), ("1".into(), "kept".into()));
        used.push(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&ready.path).unwrap()) * 512);
    }
    let [with, without] = used[..] else { unreachable!() };
    assert!(with >= 4 << 20 && without < 1 << 20, "{with} bytes with the file, {without} without");
}

#[tokio::test]
async fn opaque_directories_hide_lower_layers_wherever_the_mark_stands() {
    let lower = || Layer::base().dir("d", 0o755).file("d/low", "1").dir("d/sub", 0o700).file("d/sub/low", "1");
    for first in [true, false] {
        let mut upper = Layer::new().dir("d", 0o711);
        if first {
            upper = upper.file("d/.wh..wh..opq", "");
        }
        upper = upper.file("d/new", "2").file("d/sub/new", "2");
        if !first {
            upper = upper.file("d/.wh..wh..opq", "");
        }
        let image = merge(vec![lower(), upper]).await;
        assert!(!image.has("d/low") && !image.has("d/sub/low"), "{first}");
        assert!(image.has("d/new") && image.has("d/sub/new"), "{first}");
        assert_eq!(image.items["d"].mode, 0o040_711);
    }
}

#[tokio::test]
async fn files_and_directories_replace_each_other() {
    let image = merge(vec![
        Layer::base()
            .file("x", "file")
            .dir("y", 0o755)
            .file("y/inner", "1")
            .dir("z", 0o755)
            .file("z/kept", "1")
            .symlink("l", "z"),
        Layer::new().dir("x", 0o750).file("x/inner", "2").file("y", "file").dir("z", 0o1777).dir("l", 0o700),
        Layer::new().file("x", "again"),
    ])
    .await;
    assert_eq!((image.text("x"), image.text("y"), image.text("z/kept")), ("again".into(), "file".into(), "1".into()));
    assert!(!image.has("x/inner") && !image.has("y/inner"));
    assert_eq!(image.items["z"].mode, 0o041_777, "a directory over a directory takes the new attributes");
    assert_eq!(image.items["l"].mode, 0o040_700, "a directory over a link is a directory");
}

#[tokio::test]
async fn hard_links_share_an_inode() {
    let image = merge(vec![
        Layer::base()
            .file("a", "shared")
            .hard_link("b", "a")
            .hard_link("d/c", "/a")
            .symlink("s", "a")
            .hard_link("t", "s"),
        Layer::new().hard_link("e", "b").file("a", "other"),
    ])
    .await;
    let nid = |path: &str| image.items[path].nid;
    assert!(nid("b") == nid("d/c") && nid("b") == nid("e") && nid("a") != nid("b") && nid("s") == nid("t"));
    assert_eq!((image.items["b"].links, image.text("e"), image.text("a")), (3, "shared".into(), "other".into()));
    assert!(refusal(vec![Layer::base().hard_link("x", "bin")]).await.contains("no file of the image"));
    assert!(refusal(vec![Layer::base().hard_link("x", "etc/shadow")]).await.contains("no file of the image"));
}

#[tokio::test]
async fn owners_modes_times_devices_and_attributes_are_true() {
    let mut owned = Header::new_gnu();
    owned.set_mode(0o6755);
    owned.set_uid(70_000);
    owned.set_gid(42);
    owned.set_mtime(1_700_000_000);
    let mut null = Header::new_gnu();
    null.set_mode(0o666);
    null.set_uid(0);
    null.set_gid(0);
    null.set_mtime(0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let capability = [1, 0, 0, 2, b'\n', 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let image = merge(vec![
        Layer::base()
            .header(owned, "su", EntryType::Regular, "", b"x")
            .header(null, "dev/null", EntryType::Char, "", b"")
            .entry("pipe", EntryType::Fifo, 0o600, "", b"")
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"n"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("mtime", b"-1.5"),
                ("uid", b"3000000000"),
            ])
            .file("ping", "p"),
    ])
    .await;
    let su = &image.items["su"];
    assert_eq!((su.mode, su.uid, su.gid, su.mtime), (0o106_755, 70_000, 42, (1_700_000_000, 0)));
    assert_eq!((image.items["dev/null"].mode, image.items["dev/null"].location), (0o020_666, 0x103));
    assert_eq!(image.items["pipe"].mode, 0o010_600);
    let ping = &image.items["ping"];
    assert_eq!((ping.uid, ping.mtime), (3_000_000_000, (-2, 500_000_000)));
    assert_eq!(ping.xattrs["security.capability"], capability);
    assert_eq!(ping.xattrs.keys().collect::<Vec<_>>(), ["security.capability", "user.note"]);
}

#[tokio::test]
async fn what_guests_need_is_added_and_what_is_there_is_kept() {
    let image =
        merge(vec![Layer::base().file("etc/hosts", "mine").dir("tmp", 0o1770).symlink("run", "/var/run")]).await;
    for path in ["proc", "sys", "dev", "workspace"] {
        assert_eq!(image.items[path].mode, 0o040_755, "{path}");
    }
    assert_eq!((image.text("etc/hosts"), image.items["tmp"].mode), ("mine".into(), 0o041_770));
    assert!(image.has("var/run") && image.text("run") == "/var/run");
    let bare = merge(vec![Layer::base()]).await;
    assert_eq!((bare.text("etc/hosts"), bare.items["tmp"].mode), (String::new(), 0o041_777));
    assert!(refusal(vec![Layer::new().file("hello", "x")]).await.contains("has no /bin"));
}

#[tokio::test]
async fn long_names_long_links_and_odd_sizes_survive() {
    let deep: String = (0..15).map(|i| format!("{}{i}/", "d".repeat(60))).collect();
    let long_target = "t/".repeat(2000);
    let mut layer = Layer::base().file(&format!("{deep}file"), "deep").symlink("long", &long_target);
    let sizes = [0, 1, 31, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12_287, 2_000_000];
    let content = |size: usize| (0..size).map(|i| (i * 7 + size) as u8).collect::<Vec<u8>>();
    for size in sizes {
        layer = layer.file(&format!("s/{size}"), content(size));
    }
    let image = merge(vec![layer.pax(&[("path", "päx".as_bytes())]).file("ignored", "p")]).await;
    for size in sizes {
        assert!(image.content(&format!("s/{size}")) == content(size), "{size}");
    }
    assert_eq!((image.text(&format!("{deep}file")), image.text("long")), ("deep".into(), long_target));
    assert_eq!(image.text("päx"), "p");
}

#[tokio::test]
async fn sparse_files_of_every_kind_are_filled_with_zeros() {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(10_000);
    gnu.sparse[0].set_length(3);
    gnu.set_real_size(20_000);
    let mut map = b"1\n5000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"pax");
    let version: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"one"),
        ("GNU.sparse.realsize", b"9000"),
    ];
    let image = merge(vec![
        Layer::base()
            .header(header.clone(), "old", EntryType::GNUSparse, "", b"gnu")
            .pax(version)
            .file("GNUSparseFile.0/one", &map)
            .pax(&[("GNU.sparse.map", b"1,2,7,1"), ("GNU.sparse.size", b"9")])
            .file("zero", "abc"),
    ])
    .await;
    let mut expected = vec![0; 20_000];
    expected[10_000..10_003].copy_from_slice(b"gnu");
    assert!(image.content("old") == expected);
    let mut expected = vec![0; 9000];
    expected[5000..5003].copy_from_slice(b"pax");
    assert!(image.content("one") == expected);
    assert_eq!(image.text("zero"), "\0ab\0\0\0\0c\0");
    let beyond = Layer::base().pax(&[("GNU.sparse.map", b"1,2,70,1"), ("GNU.sparse.size", b"9")]).file("zero", "abc");
    assert!(refusal(vec![beyond]).await.contains("makes no sense"));
}

#[tokio::test]
async fn a_file_of_more_than_4_gib_and_a_directory_of_many_names() {
    let size = (4_u64 << 30) + 12_345;
    let map = format!("{},3", size - 3);
    let mut layer = Layer::base()
        .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.to_string().as_bytes())])
        .file("large", "end");
    for index in 0..5_000 {
        layer = layer.file(&format!("many/file-with-a-rather-long-name-{index}"), index.to_string());
    }
    let world = World::new();
    world.write(vec![layer], Packing::Zstd);
    let ready = world.ready().await.unwrap();
    let image = Image::open(&ready.path);
    assert_eq!(image.items["large"].size, size);
    let at = u64::from(image.items["large"].location) * 4096 + (4 << 30) + 8192;
    let file = std::fs::File::open(&ready.path).unwrap();
    let mut block = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, at).unwrap();
    // The last 57 bytes stand behind the inode.
    assert!(block.iter().all(|byte| *byte == 0));
    assert_eq!(image.text("many/file-with-a-rather-long-name-4999"), "4999");
    let used = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
    assert!(used < 16 << 20, "holes cost nothing: {used}");
}

#[tokio::test]
async fn bombs_are_refused() {
    let huge = Layer::base().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"6000000000")]).file("f", "x");
    assert!(refusal(vec![huge]).await.contains("at most 5368709120"));
    let many = (0..3).fold(Layer::base(), |layer, i| {
        let size = b"5000000000";
        layer.pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", size)]).file(&format!("f{i}"), "x")
    });
    assert!(refusal(vec![many]).await.contains("unpacks to more than"));
    let deep = "d/".repeat(200);
    assert!(refusal(vec![Layer::base().file(&format!("{deep}f"), "")]).await.contains("nested deeper"));
    let fat = vec![b'x'; 80 << 10];
    let fat = Layer::base()
        .pax(&[("SCHILY.xattr.user.a", &fat[..60 << 10]), ("SCHILY.xattr.user.b", &fat[..9000])])
        .file("f", "");
    assert!(refusal(vec![fat]).await.contains("extended attributes"));
}

#[tokio::test]
async fn half_a_gigabyte_of_zeros_in_a_few_bytes_is_refused() {
    let world = World::new();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_path("zeros").unwrap();
    header.set_size(4 << 30);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    // The file goes on for ever; the limit is reached long before its end.
    let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(header.as_bytes()).unwrap();
    (0..600).for_each(|_| packed.write_all(&[0; 1 << 20]).unwrap());
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 200_000);
    world.write_packed(&[(packed, "application/vnd.oci.image.layer.v1.tar+zstd")], &[oci::Digest::of(b"")]);
    let text = chain(&world.ready().await.expect_err("a bomb"));
    assert!(text.contains("more than 200 times"), "{text}");
    world.assert_nothing_left();
}

#[tokio::test]
async fn damaged_archives_are_refused() {
    let world = World::new();
    let good = Layer::base().file("f", vec![7; 5000]).tar();
    let mut wrong_checksum = good.clone();
    wrong_checksum[0] ^= 1;
    for (tar, says) in [
        (good[..good.len() - 4096].to_vec(), "ends in the middle"),
        (wrong_checksum, "damaged header"),
        (vec![1; 700], "damaged header"),
    ] {
        let id = oci::Digest::of(&tar);
        world.write_packed(&[(tar, "application/vnd.oci.image.layer.v1.tar")], &[id]);
        let text = chain(&world.ready().await.expect_err(says));
        assert!(text.contains(says), "{text}");
        world.assert_nothing_left();
    }
}
