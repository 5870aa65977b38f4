//! The JSON bodies of `Hello`, `Request`, `Reply` and `Control` frames.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// First words of a guest that has booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of this guest.
    pub version: u32,
    /// `uname -r` of the guest.
    pub kernel: String,
}

/// What the host asks; opens a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered with `Reply::Done` at once.
    Ping,
    /// Turns the generic, waiting guest into this one: entropy, clock, identity, root file system,
    /// network. Exactly once, before anything below. → `Reply::Adopted`.
    Adopt(Box<Identity>),
    /// Turns a guest that was adopted, and whose memory was another's, into itself: entropy, clock, names, network, boot
    /// id. Then its programs are told. Disks and programs stay. → `Reply::Adopted`.
    Renew(Box<Renewal>),
    /// The host's wall clock, for a guest that stood still. → `Done`.
    SetClock { unix_time_ns: u64 },
    /// Runs one program. → `Started`, output, `Exited`. `Input` is its standard input.
    Exec(Box<ExecRequest>),
    /// Keeps one long-running program alive until `Control::Stop`. → `Started` and `Exited` for each of
    /// its lives (none of them LAST), output, and `Done` at the end. One supervisor per guest.
    Supervise(Box<SuperviseRequest>),
    /// `Input` is a tar stream of changed files, relative to `root`; nothing in `root` changes until the
    /// whole stream has arrived, then each file is renamed into place and `delete` is removed.
    /// With `replace`, entries of `root` that the archive lacks are removed too, except `keep` (names at
    /// any depth, such as `node_modules`). → `Synced`.
    Sync { root: String, delete: Vec<String>, replace: bool, keep: Vec<String> },
    /// → a JSON array of [`DirEntry`] as `Output`, then `Done`.
    List { path: String },
    /// The record of `path` itself; a symbolic link is not followed. → `Entry`.
    Stat { path: String },
    /// → `File`, then the content as `Output`, then `Done`. Follows links; regular files only.
    Read { path: String },
    /// `Input` is the content. Written beside the target, synced, given `mode`, renamed over it. → `Written`.
    Write { path: String, mode: u32, parents: bool },
    /// → `Count` (1 if created, 0 if it existed and `parents` is set).
    MakeDir { path: String, mode: u32, parents: bool },
    /// → `Done`.
    Remove { path: String, recursive: bool },
    /// → `Count` of changed entries.
    ChangeMode { path: String, mode: u32, uid: Option<u32>, gid: Option<u32>, recursive: bool },
    /// → `Done`. Across file systems it copies, then deletes.
    Rename { from: String, to: String, overwrite: bool },
    /// Ends all processes, syncs the disks, answers `Done` and powers off.
    Shutdown { grace_ms: u64 },
}

/// Everything that makes a generic guest a particular one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// At least 32 bytes from the host's random source, for the guest's.
    pub entropy: Vec<u8>,
    /// Host wall clock, nanoseconds since 1970, read just before sending.
    pub unix_time_ns: u64,
    pub hostname: String,
    /// 32 lower-case hexadecimal digits, for `/etc/machine-id`.
    pub machine_id: String,
    /// `None`: loopback only.
    pub network: Option<Network>,
    /// Read-only image with the root file system, EROFS.
    pub root: Disk,
    /// Writable layer over `root`, ext4; `None` is a tmpfs of half the memory.
    pub scratch: Option<Disk>,
    /// Whether `scratch` outlives this guest. A guest mounts a disk labelled as throwaway before it is told anything; if the
    /// two disagree, it refuses.
    pub scratch_is_kept: bool,
    /// PEM bundle of the certificate authorities the host trusts; replaces the image's bundle and is
    /// named in the usual environment variables, so that programs work behind a company's own authority.
    pub ca_bundle_pem: Option<String>,
    /// Base environment of every program: image first, then what the launcher adds.
    pub env: BTreeMap<String, String>,
    /// Working directory of programs that name none.
    pub workdir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`, as in an image's configuration; empty is root.
    pub user: String,
    /// Cgroup limit of everything the guest runs besides its init; `None` is 75 % of the memory.
    pub memory_limit_bytes: Option<u64>,
    /// Open files of each program.
    pub open_files: u64,
}

/// What a guest that starts from another's memory must not share with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// As [`Identity::entropy`]; never the same for two children.
    pub entropy: Vec<u8>,
    /// As [`Identity::unix_time_ns`].
    pub unix_time_ns: u64,
    pub hostname: String,
    /// 32 lower-case hexadecimal digits, for `/etc/machine-id`.
    pub machine_id: String,
    /// `None`: loopback only; the parent's address and routes go.
    pub network: Option<Network>,
    pub origin: Origin,
}

/// Where a guest comes from; its programs read it in `/run/iii/fork.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The sandbox that this guest is from now on.
    pub id: String,
    /// The sandbox or snapshot whose memory it has.
    pub parent: String,
    pub forked_at_unix_ns: u64,
}

/// A block device, by the name the guest's kernel gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Such as `/dev/vda`.
    pub device: String,
    /// `erofs` or `ext4`.
    pub filesystem: String,
}

/// Addresses of `eth0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Such as `02:6d:73:00:00:02`; a clone keeps its template's until told.
    pub mac: String,
    pub address: std::net::Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: std::net::Ipv4Addr,
    pub dns: std::net::Ipv4Addr,
    pub mtu: u16,
    /// Lines for `/etc/hosts` besides `localhost` and the host name: name → address.
    pub hosts: BTreeMap<String, std::net::Ipv4Addr>,
}

/// One program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Looked up in the guest's `PATH`.
    pub argv: Vec<String>,
    /// On top of the base environment.
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    /// A pseudo-terminal of this size instead of three pipes.
    pub terminal: Option<TerminalSize>,
    /// `false`: standard input is empty and no `Input` may be sent.
    pub stdin: bool,
    /// After this the process group is killed and `Exited` says `timed_out`.
    pub timeout_ms: Option<u64>,
    /// Written before the program starts; a failure is the stream's failure.
    pub files: Vec<ExecFile>,
}

/// A small file that travels inside a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFile {
    pub path: String,
    pub mode: u32,
    pub content: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub cols: u16,
}

/// The worker's long-running program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseRequest {
    /// Given to `/bin/sh -c` unless `argv` is not empty.
    pub command: String,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    /// Time between SIGTERM and SIGKILL of the group at a restart or stop.
    pub grace_ms: u64,
}

/// What the host says about a stream that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    Resize(TerminalSize),
    /// To the whole process group.
    Signal {
        signal: i32,
    },
    /// `Supervise`: SIGTERM, grace, SIGKILL, and a new life.
    Restart,
    /// `Supervise`: end the program and the stream. `Exec`: kill the group; `Exited` still follows.
    Stop,
    /// Any stream: nobody wants the result. The guest stops the work, discards what it reads, and still
    /// closes the stream.
    Cancel,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Adopted {
        kernel: String,
        boot_id: String,
        /// [`crate::PROTOCOL_VERSION`] of this guest.
        version: u32,
    },
    Started {
        pid: u32,
    },
    /// `code` is 128 + n after signal n. With `timed_out` it is what the kill left.
    Exited {
        code: i32,
        timed_out: bool,
    },
    Entry {
        entry: DirEntry,
    },
    File {
        size: u64,
        mode: u32,
        mtime: i64,
    },
    Written {
        bytes: u64,
    },
    Synced {
        files: u64,
        deleted: u64,
    },
    Count {
        count: u64,
    },
    /// Always LAST.
    Failed(GuestFailure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    pub name: String,
    pub is_dir: bool,
    pub is_symlink: bool,
    pub size: u64,
    /// Permission bits, without the file type.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// A request that failed, in the guest's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct GuestFailure {
    pub code: ErrorCode,
    /// Names the path, program or step, and the system's reason.
    pub message: String,
}

/// Kinds of failure a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense: a relative path, an empty command, a second `Adopt`, a `Renew` before the first.
    Invalid,
    NotFound,
    ParentNotFound,
    /// A directory where a file is needed, or the reverse.
    WrongType,
    AlreadyExists,
    NotEmpty,
    Permission,
    NoSpace,
    /// More than can be told.
    TooLarge,
    /// The host cancelled, or stopped sending.
    Aborted,
    /// Anything else the kernel said.
    Io,
}
