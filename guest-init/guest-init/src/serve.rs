//! Reads frames, carries out each request (on a thread of the crew, unless it is short or somebody waits for nothing
//! else), and holds what all requests share.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use guest_protocol::{ErrorCode, GuestFailure, Header, Hello, Kind, PROTOCOL_VERSION, Reply, Request};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::crew::Crew;
use crate::reaper::Reaper;
use crate::upload::InputReader;
use crate::users::Account;
use crate::wire::{Stream, Wire, failure, lock, wait};
use crate::{adopt, boot, exec, files, renew, spawn, supervise, sync, sys};

/// Where the services run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// In a guest, as PID 1: mounts, devices and power are ours.
    Guest,
    /// As an ordinary process: nothing that is asked changes the machine, `Shutdown` ends the service.
    Process,
}

/// What all requests share.
pub struct Services {
    platform: Platform,
    pub(crate) reaper: Reaper,
    crew: Crew,
    base: Mutex<Base>,
    supervised: Mutex<bool>,
    /// How many forks lie between this memory's first guest and this one.
    forks: Mutex<u64>,
}

/// What `Adopt` said about every program.
#[derive(Clone)]
pub(crate) struct Base {
    adopted: bool,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) workdir: String,
    pub(crate) account: Account,
    pub(crate) open_files: u64,
}

impl Services {
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        spawn::prepare();
        let _ = sys::null();
        let base =
            Base { adopted: false, env: BTreeMap::new(), workdir: "/".into(), account: Account::root(), open_files: 0 };
        Self {
            platform,
            reaper: Reaper::get(),
            crew: Crew::new(),
            base: Mutex::new(base),
            supervised: Mutex::new(false),
            forks: Mutex::new(0),
        }
    }

    pub(crate) fn base(&self) -> Base {
        lock(&self.base).clone()
    }

    /// Lets one supervisor in at a time.
    pub(crate) fn begin_supervision(&self) -> bool {
        !std::mem::replace(&mut *lock(&self.supervised), true)
    }

    pub(crate) fn end_supervision(&self) {
        *lock(&self.supervised) = false;
    }
}

/// Serves requests until the channel ends; in a guest it does not end, its host may only be away.
pub fn serve(channel: File, services: Services) {
    let Ok(mut reader) = channel.try_clone() else { return };
    let wire = Wire::new(channel);
    let services = Arc::new(services);
    let hello = Hello { version: PROTOCOL_VERSION, kernel: kernel_release() };
    let hello = serde_json::to_vec(&hello).unwrap_or_default();
    if wire.hello(&hello).is_err() {
        return;
    }
    let platform = services.platform;
    while let Some((header, body)) = next_frame(&mut reader, platform) {
        let (header, body) = match header.kind {
            Kind::Freeze => match stand_still(&wire, &mut reader, platform) {
                Some(Woken::Same) => continue,
                Some(Woken::Another(header, body)) => (header, body),
                None => break,
            },
            _ => (header, body),
        };
        dispatch(&wire, &services, header, body);
    }
    wire.cancel_all();
}

/// As whom a guest wakes that stood still.
enum Woken {
    Same,
    /// A child; with the first frame of its host.
    Another(Header, Vec<u8>),
}

/// Keeps the channel silent until the host says who this guest is from now on. The memory is saved meanwhile, so this
/// returns once in the source, and once in every child.
fn stand_still(wire: &Wire, reader: &mut File, platform: Platform) -> Option<Woken> {
    let rest = wire.rest().ok()?;
    loop {
        let (header, body) = next_frame(reader, platform)?;
        match header.kind {
            Kind::Thaw => return Some(Woken::Same),
            Kind::Request => {
                rest.end_as_another();
                return Some(Woken::Another(header, body));
            }
            // A host that keeps to the protocol says nothing else now.
            _ => {}
        }
    }
}

pub(crate) fn kernel_release() -> String {
    // Asked once: a template has asked, and its clones need not.
    static RELEASE: OnceLock<String> = OnceLock::new();
    let ask = || nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    RELEASE.get_or_init(|| ask().unwrap_or_default()).clone()
}

fn next_frame(reader: &mut File, platform: Platform) -> Option<(Header, Vec<u8>)> {
    let mut raw = [0; Header::BYTES];
    fill(reader, &mut raw, platform).ok()?;
    let header = match Header::parse(&raw) {
        Ok(header) => header,
        Err(error) => {
            boot::console(&format!("the channel is out of step: {error}"));
            return None;
        }
    };
    let mut body = vec![0; header.length as usize];
    fill(reader, &mut body, platform).ok()?;
    Some((header, body))
}

/// As `read_exact`. A virtio port reads as empty while the host's end is closed: that is no end of file.
fn fill(reader: &mut File, mut buffer: &mut [u8], platform: Platform) -> io::Result<()> {
    while !buffer.is_empty() {
        match reader.read(buffer) {
            Ok(0) if platform == Platform::Process => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => {
                wait(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], Some(Duration::from_millis(20)))?;
                thread::sleep(Duration::from_millis(5));
            }
            Ok(length) => buffer = &mut buffer[length..],
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                wait(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn dispatch(wire: &Arc<Wire>, services: &Arc<Services>, header: Header, body: Vec<u8>) {
    match header.kind {
        Kind::Request => match wire.open(header.stream) {
            Ok(stream) => start(services, stream, &body),
            Err(error) => boot::console(&format!("no descriptor for a request: {error}")),
        },
        Kind::Input => {
            if let Some(stream) = wire.find(header.stream) {
                stream.push_input(body, header.last);
            }
        }
        Kind::Credit => {
            if let (Some(stream), Ok(raw)) = (wire.find(header.stream), <[u8; 4]>::try_from(body.as_slice())) {
                stream.grant(u32::from_le_bytes(raw));
            }
        }
        Kind::Control => {
            if let (Some(stream), Ok(order)) = (wire.find(header.stream), serde_json::from_slice(&body)) {
                stream.order(order);
            }
        }
        // The channel is not at rest, or the reader has seen to it.
        Kind::Freeze | Kind::Thaw => {}
        // Only a guest says these.
        Kind::Hello | Kind::Reply | Kind::Output | Kind::ErrorOutput | Kind::Frozen => {}
    }
}

fn start(services: &Arc<Services>, stream: Arc<Stream>, body: &[u8]) {
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            return stream.finish(Err(failure(ErrorCode::Invalid, format!("request not understood: {error}"))));
        }
    };
    // The shortest requests need no thread.
    if request == Request::Ping {
        return stream.finish(Ok(Reply::Done));
    }
    // Nor do those before whose answer nothing else is asked, and for whose answer somebody waits.
    if matches!(request, Request::Adopt(_) | Request::Renew(_)) {
        return run_guarded(services, &stream, request);
    }
    let if_no_thread = Arc::clone(&stream);
    let for_job = Arc::clone(services);
    if let Err(error) = services.crew.run(move || run_guarded(&for_job, &stream, request)) {
        if_no_thread.finish(Err(failure(ErrorCode::Io, format!("no thread for the request: {error}"))));
    }
}

/// A request that panics fails alone.
fn run_guarded(services: &Arc<Services>, stream: &Arc<Stream>, request: Request) {
    if catch_unwind(AssertUnwindSafe(|| run(services, stream, request))).is_err() {
        stream.finish(Err(failure(ErrorCode::Io, "the request failed inside init")));
    }
}

fn run(services: &Arc<Services>, stream: &Arc<Stream>, request: Request) {
    let adopted = lock(&services.base).adopted;
    let result = match request {
        Request::Ping => Ok(Reply::Done),
        Request::Shutdown { grace_ms } => return shutdown(services, stream, Duration::from_millis(grace_ms)),
        Request::Adopt(_) if adopted => Err(failure(ErrorCode::Invalid, "this guest is adopted already")),
        Request::Adopt(identity) => adopted_as(services, &identity),
        // It has no root file system yet that could be told, and no disks.
        Request::Renew(_) if !adopted => Err(failure(ErrorCode::Invalid, "this guest was never adopted")),
        Request::Renew(renewal) => renewed_as(services, &renewal),
        Request::SetClock { unix_time_ns } => set_clock(services, unix_time_ns),
        Request::Exec(request) => return exec::run(services, stream, &request),
        Request::Supervise(request) => return supervise::run(services, stream, &request),
        Request::Sync { root, delete, replace, keep } => {
            sync::run(InputReader::new(stream), &root, &delete, replace, &keep)
        }
        Request::Read { path } => return files::read(stream, &path),
        Request::Write { path, mode, parents } => files::write(InputReader::new(stream), &path, mode, parents),
        Request::List { path } => return files::list(stream, &path),
        Request::Stat { path } => files::stat(&path),
        Request::MakeDir { path, mode, parents } => files::make_dir(&path, mode, parents),
        Request::Remove { path, recursive } => files::remove(&path, recursive),
        Request::ChangeMode { path, mode, uid, gid, recursive } => files::change_mode(&path, mode, uid, gid, recursive),
        Request::Rename { from, to, overwrite } => files::rename(&from, &to, overwrite),
    };
    stream.finish(result);
}

fn adopted_as(services: &Services, identity: &guest_protocol::Identity) -> Result<Reply, GuestFailure> {
    let boot_id = match services.platform {
        Platform::Guest => adopt::adopt(identity)?,
        Platform::Process => kernel_boot_id(),
    };
    let account = Account::find(&identity.user)?;
    let mut base = lock(&services.base);
    *base = Base {
        adopted: true,
        env: adopt::environment(identity, &account, services.platform == Platform::Guest),
        workdir: if identity.workdir.is_empty() { "/".into() } else { identity.workdir.clone() },
        account,
        open_files: identity.open_files,
    };
    Ok(myself(boot_id))
}

fn renewed_as(services: &Services, renewal: &guest_protocol::Renewal) -> Result<Reply, GuestFailure> {
    let mut forks = lock(&services.forks);
    *forks += 1;
    let boot_id = match services.platform {
        Platform::Guest => renew::renew(renewal, *forks)?,
        Platform::Process => kernel_boot_id(),
    };
    Ok(myself(boot_id))
}

/// What a guest that has just become somebody says.
fn myself(boot_id: String) -> Reply {
    Reply::Adopted { kernel: kernel_release(), boot_id, version: PROTOCOL_VERSION }
}

fn kernel_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn set_clock(services: &Services, unix_time_ns: u64) -> Result<Reply, GuestFailure> {
    if services.platform == Platform::Guest {
        adopt::set_clock(unix_time_ns)?;
    }
    Ok(Reply::Done)
}

fn shutdown(services: &Services, stream: &Stream, grace: Duration) {
    if services.platform == Platform::Process {
        return stream.finish(Ok(Reply::Done));
    }
    let everyone = Pid::from_raw(-1);
    let _ = kill(everyone, Signal::SIGTERM);
    services.reaper.wait_for_nobody(grace);
    let _ = kill(everyone, Signal::SIGKILL);
    nix::unistd::sync();
    stream.finish(Ok(Reply::Done));
    // The answer is in the port's queue; the host may end the VM as soon as it has read it.
    // Without ACPI a kernel that is to power off stands still instead; a reset ends every machine we run in.
    let mode = match Path::new("/sys/firmware/acpi").exists() {
        true => nix::sys::reboot::RebootMode::RB_POWER_OFF,
        false => nix::sys::reboot::RebootMode::RB_AUTOBOOT,
    };
    let _ = nix::sys::reboot::reboot(mode);
}
