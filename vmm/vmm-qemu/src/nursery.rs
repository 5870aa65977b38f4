//! Children forked from their source's QEMU, instead of started and restored: they have its memory, and all code that it has
//! translated.
//!
//! ```text
//! source's iii-vm ── x-nursery ──► QEMU ── fork ──► nursery ── fork ──► child's QEMU
//!                                                     ▲  │                  │
//! child's iii-vm ── leash, wires ── <folder>/nursery ─┘  └─ wait status ────┼──► child's iii-vm
//!                                                                    process id
//! ```
//! Our own QEMU can (`images/qemu/nursery.c`, which describes the other half), where the processor is emulated. Everywhere
//! else children are restored from a snapshot's files, which a fork does without.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmm_host::ForkedProcess;

use crate::error::{QemuError, at};
use crate::packets;
use crate::qmp::Monitor;

/// The socket's name in the snapshot's folder, and that of a link to the file that memory is a mapping of.
const SOCKET: &str = "nursery";
const BASE: &str = "base";

const COMMAND: &str = "x-nursery";

/// Standard output and error, where QEMU has the guest's console and its own messages.
const OUTPUT: [RawFd; 2] = [1, 2];

/// A nursery takes requests until this is dropped, or it has had as many as it expects.
#[derive(Debug)]
pub(crate) struct Nursery {
    leash: PipeWriter,
}

/// What a child is told of its source, in the snapshot's description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Birthplace {
    pub(crate) ends: QemuEnds,
    /// QEMU's name for the topmost layer of the disk, and how many names were given.
    pub(crate) top_node: String,
    pub(crate) nodes_made: u32,
    /// Whether memory is a mapping of a file.
    pub(crate) has_base: bool,
}

/// The numbers by which QEMU knows the far ends of a machine's wires. A fork has them from its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QemuEnds {
    pub(crate) guest: RawFd,
    pub(crate) net: RawFd,
    pub(crate) monitor: RawFd,
}

/// What a child's QEMU gets copies of, for its own.
#[derive(Debug)]
pub(crate) struct ChildEnds<'a> {
    pub(crate) guest: BorrowedFd<'a>,
    pub(crate) net: BorrowedFd<'a>,
    /// Where the child says that it is ready.
    pub(crate) monitor: BorrowedFd<'a>,
}

/// A child's process, which stands still, and what it says.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) process: ForkedProcess,
    pub(crate) console: PipeReader,
    pub(crate) messages: PipeReader,
    /// What its memory is a mapping of.
    pub(crate) base: Option<File>,
}

impl Nursery {
    /// It takes no more requests, and will be gone with its last child.
    pub(crate) fn is_over(&self) -> bool {
        let mut leash = [PollFd::new(self.leash.as_fd(), PollFlags::empty())];
        let closed = |leash: &PollFd<'_>| leash.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        poll(&mut leash, PollTimeout::ZERO).is_ok_and(|_| closed(&leash[0]))
    }
}

/// Whether this QEMU has the command.
///
/// # Errors
/// The monitor did not answer.
pub(crate) fn is_known(monitor: &mut Monitor, deadline: Instant) -> Result<bool, QemuError> {
    monitor.send(&[("query-commands", Value::Null)])?;
    let commands = monitor.answers(&["query-commands"], deadline)?;
    Ok(commands.as_array().is_some_and(|commands| commands.iter().any(|command| command["name"] == COMMAND)))
}

/// Forks QEMU, whose machine stands still, for `births` children of the snapshot that is being made in `folder`.
///
/// # Errors
/// [`QemuError::Refused`] and [`QemuError::File`]: nothing has changed. Others: the monitor did not answer.
pub(crate) fn open(
    monitor: &mut Monitor,
    folder: &Path,
    births: u32,
    ends: QemuEnds,
    base: Option<&File>,
    deadline: Instant,
) -> Result<Nursery, QemuError> {
    let failed = || at(folder.join(SOCKET));
    if let Some(base) = base {
        link(base, &folder.join(BASE)).map_err(failed())?;
    }
    let listener = packets::listen_in(folder, SOCKET).map_err(failed())?;
    let (leash, kept) = io::pipe().map_err(failed())?;
    monitor.send_descriptor("listener", listener.as_fd())?;
    monitor.send_descriptor("leash", leash.as_fd())?;
    let wires = [ends.guest, ends.net, ends.monitor, OUTPUT[0], OUTPUT[1]];
    let arguments = json!({ "listener": "listener", "leash": "leash", "wires": wires, "births": births });
    monitor.send(&[(COMMAND, arguments)])?;
    let forked = monitor.answers(&["getfd", "getfd", COMMAND], deadline);
    if let Err(QemuError::Refused { command, reason }) = forked {
        // What it did not take, it keeps.
        for name in ["listener", "leash"] {
            let _ = monitor.run("closefd", json!({ "fdname": name }), deadline);
        }
        return Err(QemuError::Refused { command, reason });
    }
    forked.map(|_| Nursery { leash: kept })
}

/// Asks the nursery of the snapshot in `folder` for a child with these ends.
///
/// # Errors
/// [`QemuError::SourceGone`], or [`QemuError::Fork`] with the reason.
pub(crate) fn birth(folder: &Path, place: &Birthplace, ends: &ChildEnds<'_>) -> Result<Born, QemuError> {
    ask(folder, place, ends).map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            QemuError::SourceGone
        }
        _ => QemuError::Fork { path: folder.to_owned(), source },
    })
}

fn ask(folder: &Path, place: &Birthplace, ends: &ChildEnds<'_>) -> io::Result<Born> {
    let base = place.has_base.then(|| File::open(folder.join(BASE))).transpose()?;
    let (leash, kept) = io::pipe()?;
    let (console, console_end) = io::pipe()?;
    let (messages, messages_end) = io::pipe()?;
    // The order of `open`.
    let wires = [ends.guest, ends.net, ends.monitor, console_end.as_fd(), messages_end.as_fd()];
    let given: Vec<RawFd> = iter::once(leash.as_fd()).chain(wires).map(|end| end.as_raw_fd()).collect();
    let (connection, pid) = packets::request(folder, SOCKET, &given)?;
    Ok(Born { process: ForkedProcess::new(pid, kept, connection)?, console, messages, base })
}

/// The child's first answer, on the monitor that it was given.
pub(crate) fn await_child(monitor: &mut Monitor, deadline: Instant) -> Result<(), QemuError> {
    monitor.expect_answer();
    monitor.answers(&[COMMAND], deadline).map(drop)
}

/// A name for an open file; its own may be gone, or somebody else's.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, own.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?)
}
