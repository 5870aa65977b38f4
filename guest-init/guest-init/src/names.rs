//! The files by which programs know who and where they are.
//!
//! They are files of a tmpfs, mounted over those of the root: a child of a snapshot writes them anew without a first use
//! of overlay and disk, which an emulating machine has to translate. As in a container, a program can write them in
//! place, but not put another file there: that fails with EBUSY.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use guest_protocol::Network;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::fstat;

use crate::adopt::tolerate;
use crate::sys::{self, Page};
use crate::wire::lock;

/// Where the files are; a name in here is a name in `/etc`.
const FOLDER: &str = "/run/iii/etc";

/// The kernel's boot id, and what lies over it: the kernel itself makes one per boot and lets nobody change it, and a
/// child has to get another one.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID: &str = "/run/iii/boot_id";

/// Needs `/run` and `/proc`, no root file system.
pub(crate) fn prepare() -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    for (name, content) in files("", "", None) {
        put(&Path::new(FOLDER).join(name), &content, 0o644)?;
    }
    put(Path::new(BOOT_ID), "", 0o444)?;
    lay_over(BOOT_ID, KERNEL_BOOT_ID)
}

pub(crate) fn write(hostname: &str, machine_id: &str, network: Option<&Network>) -> io::Result<()> {
    for (name, content) in files(hostname, machine_id, network) {
        put(&Path::new(FOLDER).join(name), &content, 0o644)?;
    }
    Ok(())
}

/// Puts the files into `/etc` of the root. An image may lack it, or have odd things in it: no program fails for lack of
/// one of these, and none of them keeps the next from its place.
pub(crate) fn show() {
    for (name, _) in files("", "", None) {
        let target = format!("/etc/{name}");
        let shown = place_for(&target).and_then(|()| lay_over(&format!("{FOLDER}/{name}"), &target));
        tolerate(&format!("show {target}"), shown);
    }
}

/// A boot id that no sibling has, if the random source was seeded; programs read it from now on.
pub(crate) fn change_boot_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    sys::random()?.read_exact(&mut bytes)?;
    let id = uuid(bytes);
    put(Path::new(BOOT_ID), &format!("{id}\n"), 0o444)?;
    Ok(id)
}

/// What `/etc` says. The same names as `GUEST_FILES` of the crate `oci`, which puts empty ones into every image.
fn files(hostname: &str, machine_id: &str, network: Option<&Network>) -> [(&'static str, String); 4] {
    let mut hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n");
    let mut resolver = String::new();
    if let Some(network) = network {
        for (name, address) in &network.hosts {
            hosts.push_str(&format!("{address} {name}\n"));
        }
        resolver = format!("nameserver {}\n", network.dns);
    }
    [
        ("hostname", format!("{hostname}\n")),
        ("machine-id", format!("{machine_id}\n")),
        ("hosts", hosts),
        ("resolv.conf", resolver),
    ]
}

/// An ordinary file to mount another one over. What is a link leads elsewhere, perhaps nowhere.
fn place_for(path: &str) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all("/etc")?;
            File::create(path).map(drop)
        }
        _ => replace(path, ""),
    }
}

/// Puts a file in place of whatever stands there, at once: programs of a child may be reading it.
pub(crate) fn replace(path: &str, content: &str) -> io::Result<()> {
    let next = format!("{path}.iii-new");
    fs::write(&next, content)?;
    fs::rename(&next, path)
}

fn lay_over(file: &str, target: &str) -> io::Result<()> {
    Ok(mount(Some(file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// A file that was written once, and is written again by writing to memory.
struct Kept {
    file: File,
    page: Page,
}

impl Kept {
    /// Where that changes the file's length, or a program has, it is not done.
    fn put(&mut self, content: &str) -> bool {
        let fits = content.len() <= Page::BYTES
            && fstat(&self.file).is_ok_and(|found| usize::try_from(found.st_size) == Ok(content.len()));
        // An empty file has no page.
        if fits && !content.is_empty() {
            self.page.write(content.as_bytes());
        }
        fits
    }
}

/// A child's names are as long as its parent's: they are changed without a first use of the kernel's code for files.
fn put(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    static KEPT: Mutex<BTreeMap<PathBuf, Kept>> = Mutex::new(BTreeMap::new());
    let mut kept = lock(&KEPT);
    if kept.get_mut(path).is_some_and(|kept| kept.put(content)) {
        return Ok(());
    }
    write_over(path, content, mode)?;
    if !kept.contains_key(path) {
        let file = File::options().read(true).write(true).open(path)?;
        let page = Page::of(&file)?;
        kept.insert(path.to_owned(), Kept { file, page });
    }
    // The page is there from now on, in this process and in a child's.
    kept.get_mut(path).map(|kept| kept.put(content));
    Ok(())
}

/// Written over and then cut, not emptied first: a program of a child may be reading it.
fn write_over(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    let length = content.len() as u64;
    // Not where it changes nothing: a first truncation is code that a clone would have to translate.
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

/// Random bytes in the form of RFC 9562, version 4.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(bytes));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_become_a_uuid_of_version_four() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn a_file_is_written_over_and_keeps_nothing_of_a_longer_one() {
        let path = std::env::temp_dir().join(format!("iii-names-{}", std::process::id()));
        for content in ["a long line\n", "short\n"] {
            write_over(&path, content, 0o644).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), content);
        }
        fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn without_a_network_nothing_resolves_but_the_guest_itself() {
        let [_, _, (_, hosts), (_, resolver)] = files("guest", "id", None);
        assert_eq!((hosts.lines().count(), hosts.contains("127.0.1.1 guest\n"), resolver.as_str()), (3, true, ""));
    }
}
