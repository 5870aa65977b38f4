//! Templates: machines saved right after their guest said Hello, to be cloned instead of booted.
//!
//! ```text
//! <folder>/<key>/template.json   written last; has the digest of `state`, the others' lengths
//!                memory          guest memory, mapped privately by every clone
//!                state           devices and processors
//!                scratch         only if the guest has it mounted: that disk, for clones that throw theirs away
//!         <key>.lock             held while building
//!         .building-…            incomplete; removed by whoever holds the lock next
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmm_host::{Kit, Manner, Process};

use crate::arguments::{HostEnds, Start, arguments};
use crate::error::{QemuError, at};
use crate::key::{Key, hex};
use crate::layers::Layers;
use crate::qmp::Monitor;
use crate::sparse;

/// Templates kept; beyond it the one used longest ago goes.
const KEPT: usize = 8;

/// What a freshly booted guest writes to its memory file, with a margin.
const NEEDED_BYTES: u64 = 192 * 1024 * 1024;

/// A guest that has not said Hello by then never will.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

const SAVE_LIMIT: Duration = Duration::from_secs(30);

/// Longest first frame that is taken for a Hello.
const MAX_HELLO_BYTES: u32 = 64 * 1024;

const HELLO: u8 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    key: Value,
    state_sha256: String,
    memory_bytes: u64,
    scratch_bytes: Option<u64>,
}

/// A complete template.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) folder: PathBuf,
    pub(crate) memory: PathBuf,
    /// Open, since another may take the template away: the clone's memory is still what it was.
    pub(crate) memory_file: File,
    pub(crate) state: File,
    /// The disk as its guest has it mounted; a clone's must hold the same.
    pub(crate) scratch: Option<File>,
}

/// The templates of one user.
#[derive(Debug)]
pub(crate) struct Templates {
    folder: PathBuf,
}

impl Templates {
    pub(crate) fn open(folder: &Path) -> Result<Self, QemuError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The template called `name`, if there is one; marks it as used.
    ///
    /// # Errors
    /// [`QemuError::Damaged`] when its files are not what was saved.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Template>, QemuError> {
        let folder = self.folder.join(name);
        if !folder.exists() {
            return Ok(None);
        }
        let damaged = |reason: String| QemuError::Damaged { path: folder.clone(), reason };
        let about = folder.join("template.json");
        let text = fs::read(&about).map_err(|error| damaged(format!("template.json: {error}")))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("template.json: {error}")))?;
        let memory = folder.join("memory");
        let length = fs::metadata(&memory).map_err(|error| damaged(format!("memory: {error}")))?.len();
        if length != manifest.memory_bytes {
            return Err(damaged(format!("memory has {length} bytes, not {}", manifest.memory_bytes)));
        }
        let state = folder.join("state");
        let digest = digest(&state).map_err(|error| damaged(format!("state: {error}")))?;
        if digest != manifest.state_sha256 {
            return Err(damaged("state is not what was saved".to_owned()));
        }
        let state = File::open(&state).map_err(|error| damaged(format!("state: {error}")))?;
        let memory_file = File::open(&memory).map_err(|error| damaged(format!("memory: {error}")))?;
        let scratch = match manifest.scratch_bytes {
            None => None,
            Some(bytes) => {
                let failed = |error| damaged(format!("scratch: {error}"));
                let file = File::open(folder.join("scratch")).map_err(failed)?;
                let length = file.metadata().map_err(failed)?.len();
                if length != bytes {
                    return Err(damaged(format!("scratch has {length} bytes, not {bytes}")));
                }
                Some(file)
            }
        };
        if let Ok(about) = OpenOptions::new().write(true).open(&about) {
            let _ = about.set_modified(SystemTime::now());
        }
        Ok(Some(Template { folder, memory, memory_file, state, scratch }))
    }

    pub(crate) fn remove(&self, name: &str) {
        let _ = fs::remove_dir_all(self.folder.join(name));
    }

    /// Makes the template called `name`, unless someone else did while we waited for the lock.
    /// `building` is called when work really starts.
    pub(crate) fn make(
        &self,
        name: &str,
        key: &Key,
        program: &Path,
        kit: &Kit,
        building: impl FnOnce(),
    ) -> Result<Template, QemuError> {
        let lock_path = self.folder.join(format!("{name}.lock"));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = Flock::lock(lock.map_err(at(&lock_path))?, FlockArg::LockExclusive)
            .map_err(|(_, error)| at(&lock_path)(error.into()))?;
        if let Ok(Some(template)) = self.find(name) {
            return Ok(template);
        }
        building();
        self.remove(name);
        let work = self.folder.join(format!(".building-{name}"));
        let _ = fs::remove_dir_all(&work);
        self.require_space(key.shape.memory_mib)?;
        DirBuilder::new().mode(0o700).create(&work).map_err(at(&work))?;
        let built =
            build(&work, key, program, kit).and_then(|()| fs::rename(&work, self.folder.join(name)).map_err(at(&work)));
        if let Err(error) = built {
            let _ = fs::remove_dir_all(&work);
            return Err(error);
        }
        self.sweep(name);
        drop(lock);
        self.find(name)?.ok_or_else(|| QemuError::Damaged {
            path: self.folder.join(name),
            reason: "it vanished after it was made".to_owned(),
        })
    }

    fn require_space(&self, memory_mib: u32) -> Result<(), QemuError> {
        let space = nix::sys::statvfs::statvfs(&self.folder).map_err(|error| at(&self.folder)(error.into()))?;
        #[cfg_attr(target_os = "linux", expect(clippy::useless_conversion, reason = "other systems count in 32 bits"))]
        let free = u64::from(space.blocks_available()) * space.fragment_size();
        // A memory file on a full disk would kill QEMU in the middle of a write.
        let needed = NEEDED_BYTES.min(u64::from(memory_mib) * 1024 * 1024) + 8 * 1024 * 1024;
        if free >= needed {
            return Ok(());
        }
        Err(QemuError::NoSpace { path: self.folder.clone(), free_mib: free >> 20, needed_mib: needed >> 20 })
    }

    /// Removes the templates used longest ago. Running clones keep their files open and do not notice.
    fn sweep(&self, current: &str) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.iter().filter(|path| is_abandoned(path)).for_each(|path| {
            let _ = fs::remove_dir_all(path);
        });
        let mut templates: Vec<(SystemTime, PathBuf)> = paths
            .into_iter()
            .filter(|path| !path.ends_with(current))
            .filter_map(|path| Some((fs::metadata(path.join("template.json")).ok()?.modified().ok()?, path)))
            .collect();
        templates.sort();
        let surplus = templates.len().saturating_sub(KEPT - 1);
        for (_, path) in templates.into_iter().take(surplus) {
            // Its lock stays: someone may be waiting for it, and a second one would not exclude them.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Whether `path` is the work of a builder that was killed: none works longer than its limits.
fn is_abandoned(path: &Path) -> bool {
    let is_work = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".building-"));
    let age = fs::metadata(path).and_then(|about| about.modified()).ok().and_then(|time| time.elapsed().ok());
    is_work && age.is_some_and(|age| age > 2 * (BOOT_LIMIT + SAVE_LIMIT))
}

/// Boots a machine whose disks are blank, or to be thrown away, waits for its Hello and saves it into `work`.
fn build(work: &Path, key: &Key, program: &Path, kit: &Kit) -> Result<(), QemuError> {
    let memory = work.join("memory");
    let (root, scratch) = (work.join("blank-root"), work.join("scratch"));
    let blank =
        |path: &Path, length| private(path).and_then(|file| file.set_len(length).map(|()| file)).map_err(at(path));
    blank(&root, key.disks.0)?;
    let scratch_file = blank(&scratch, key.disks.1)?;
    if let Some(throwaway) = kit.throwaway.as_ref().filter(|_| key.scratch_mounted) {
        File::open(throwaway).and_then(|from| sparse::copy(&from, &scratch_file)).map_err(at(throwaway))?;
    }
    private(&memory).and_then(|file| file.set_len(u64::from(key.shape.memory_mib) << 20)).map_err(at(&memory))?;
    let pair = || UnixStream::pair().map_err(at("a socket pair"));
    let ((mut guest, guest_end), (net, net_end), (monitor, monitor_end)) = (pair()?, pair()?, pair()?);
    let ends = HostEnds {
        name: "template",
        root_disk: &root,
        scratch: &Layers::raw(&scratch),
        scratch_is_kept: false,
        guest_fd: guest_end.as_raw_fd(),
        net_fd: net_end.as_raw_fd(),
        monitor_fd: monitor_end.as_raw_fd(),
    };
    let list = arguments(&key.shape, &ends, &Start::BootIntoFile(kit, &memory));
    let inherited = vec![ends.guest_fd, ends.net_fd, ends.monitor_fd];
    let mut process =
        Process::start(program, &list, inherited, work, "qemu", Manner { huge_pages: true, own_group: false })?;
    drop((guest_end, net_end, monitor_end));
    let saved = save(&mut process, &mut guest, monitor, work, key);
    drop(net);
    // The reason why QEMU went away is in its messages, which are complete only now.
    let result = saved.map_err(|error| match error {
        QemuError::Ended { during, .. } => {
            let _ = process.wait();
            QemuError::Ended { during, said: process.last_message() }
        }
        other => other,
    });
    drop(process);
    result?;
    let log = work.join("qemu.log");
    for path in [&root, &log].into_iter().chain((!key.scratch_mounted).then_some(&scratch)) {
        fs::remove_file(path).map_err(at(path))?;
    }
    Ok(())
}

fn save(
    process: &mut Process,
    guest: &mut UnixStream,
    monitor: UnixStream,
    work: &Path,
    key: &Key,
) -> Result<(), QemuError> {
    let mut monitor = Monitor::new(monitor).map_err(|source| QemuError::Monitor { during: "start", source })?;
    monitor.during("the template's boot");
    await_hello(guest)?;
    let deadline = Instant::now() + SAVE_LIMIT;
    monitor.during("saving a template");
    let state_path = work.join("state");
    let state = private(&state_path).map_err(at(&state_path))?;
    monitor.send(&[("qmp_capabilities", Value::Null), ("stop", Value::Null)])?;
    monitor.answers(&["qmp_capabilities", "stop"], deadline)?;
    monitor.send_descriptor("state", state.as_fd())?;
    monitor.answers(&["getfd"], deadline)?;
    monitor
        .send(&[("migrate-set-capabilities", migration_capabilities()), ("migrate", json!({ "uri": "fd:state" }))])?;
    monitor.answers(&["migrate-set-capabilities", "migrate"], deadline)?;
    monitor.migration_completed(deadline)?;
    monitor.send(&[("quit", Value::Null)])?;
    let _ = process.wait();

    // All of it is on the disk before the name is: a template that survived a crash is a whole one.
    let memory = work.join("memory");
    File::open(&memory).and_then(|file| file.sync_all()).map_err(at(&memory))?;
    state.sync_all().map_err(at(&state_path))?;
    let scratch = work.join("scratch");
    File::open(&scratch).and_then(|file| file.sync_all()).map_err(at(&scratch))?;
    let state_sha256 = digest(&state_path).map_err(at(&state_path))?;
    let key_value = serde_json::to_value(key).map_err(|error| at(work)(error.into()))?;
    let manifest = Manifest {
        key: key_value,
        state_sha256,
        memory_bytes: u64::from(key.shape.memory_mib) * 1024 * 1024,
        scratch_bytes: key.scratch_mounted.then_some(key.disks.1),
    };
    let about = work.join("template.json");
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| at(&about)(error.into()))?;
    let mut file = private(&about).map_err(at(&about))?;
    std::io::Write::write_all(&mut file, &text).and_then(|()| file.sync_all()).map_err(at(&about))
}

/// Guest memory stays in its file, and completion is announced.
pub(crate) fn migration_capabilities() -> Value {
    json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ] })
}

/// Reads the guest's first frame, which must be a Hello, to its end.
fn await_hello(guest: &mut UnixStream) -> Result<(), QemuError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            QemuError::TooSlow { what: "the guest's boot" }
        }
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
            QemuError::Ended { during: "the template's boot", said: String::new() }
        }
        _ => QemuError::Monitor { during: "the template's boot", source },
    };
    guest.set_read_timeout(Some(BOOT_LIMIT)).map_err(failed)?;
    let mut header = [0u8; 12];
    guest.read_exact(&mut header).map_err(failed)?;
    let [l0, l1, l2, l3, _, _, _, _, kind, ..] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if kind != HELLO || length > MAX_HELLO_BYTES {
        return Err(QemuError::NotHello { header });
    }
    let mut body = guest.take(u64::from(length));
    let read = std::io::copy(&mut body, &mut std::io::sink()).map_err(failed)?;
    if read == u64::from(length) { Ok(()) } else { Err(failed(std::io::ErrorKind::UnexpectedEof.into())) }
}

fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn digest(path: &Path) -> std::io::Result<String> {
    Ok(hex(&Sha256::digest(fs::read(path)?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pretend_template(folder: &Path, name: &str, age_s: u64) {
        fs::create_dir(folder.join(name)).unwrap();
        let about = File::create(folder.join(name).join("template.json")).unwrap();
        about.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
    }

    #[test]
    fn the_templates_used_longest_ago_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        for age in 0..12 {
            pretend_template(folder.path(), &format!("t{age:02}"), 100 + age);
        }
        pretend_template(folder.path(), "current", 10_000);
        for (name, age_s) in [(".building-old", 10_000), (".building-now", 1)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            let work = File::open(folder.path().join(name)).unwrap();
            work.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        }
        Templates::open(folder.path()).unwrap().sweep("current");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".building-now", "current", "t00", "t01", "t02", "t03", "t04", "t05", "t06"]);
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let templates = Templates::open(folder.path()).unwrap();
        assert!(templates.find("absent").unwrap().is_none());
        let template = folder.path().join("t");
        fs::create_dir(&template).unwrap();
        let why = || match templates.find("t") {
            Err(QemuError::Damaged { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        assert!(why().starts_with("template.json: "));
        fs::write(template.join("template.json"), r#"{"key":1,"state_sha256":"","memory_bytes":3}"#).unwrap();
        fs::write(template.join("memory"), "ab").unwrap();
        assert_eq!(why(), "memory has 2 bytes, not 3");
        fs::write(template.join("memory"), "abc").unwrap();
        assert!(why().starts_with("state: "));
        fs::write(template.join("state"), "x").unwrap();
        assert_eq!(why(), "state is not what was saved");
        let saved = |scratch: &str| {
            let sum = digest(&template.join("state")).unwrap();
            let text = format!(r#"{{"key":1,"state_sha256":"{sum}","memory_bytes":3,"scratch_bytes":{scratch}}}"#);
            fs::write(template.join("template.json"), text).unwrap();
        };
        saved("4");
        assert!(why().starts_with("scratch: "));
        fs::write(template.join("scratch"), "ab").unwrap();
        assert_eq!(why(), "scratch has 2 bytes, not 4");
        fs::write(template.join("scratch"), "abcd").unwrap();
        assert!(templates.find("t").unwrap().unwrap().scratch.is_some());
        saved("null");
        assert!(templates.find("t").unwrap().unwrap().scratch.is_none());
    }

    #[test]
    fn only_a_bounded_hello_is_a_hello() {
        let hello = |bytes: &[u8]| {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            drop(theirs);
            await_hello(&mut ours)
        };
        assert!(hello(&[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'{', b'}']).is_ok());
        assert!(matches!(hello(&[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]), Err(QemuError::NotHello { .. })));
        assert!(matches!(hello(&[0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 0]), Err(QemuError::NotHello { .. })));
        assert!(matches!(hello(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]), Err(QemuError::Ended { .. })));
    }
}
