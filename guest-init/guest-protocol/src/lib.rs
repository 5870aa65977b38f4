//! Every frame host and guest exchange, and their limits.
//!
//! ```text
//! host (guest-client)  ──── one byte stream: a virtio-serial port named PORT_NAME ────  guest (guest-init)
//!
//!   stream 0     Hello: the guest says that it is up; later only Freeze, Frozen and Thaw
//!   stream n>0   opened by the host with Request; then, in any interleaving:
//!                  host → guest  Input (the last one has LAST), Control, Credit
//!                  guest → host  Output, ErrorOutput, Reply, Credit
//!                closed by the one guest → host Reply that has LAST
//! ```
//! A guest's memory can be saved, and other guests, its children, start from that memory:
//!
//! ```text
//!   host ── Freeze ──► guest          the host sends nothing more
//!   host ◄── Frozen ── guest          the guest sends nothing more: the channel is empty, its memory may be saved
//!   host ── Thaw ────► guest          the source goes on; nothing was lost, no stream has noticed
//!   host ── Request Renew ──► guest   instead, the first frame of a new host's connection: this is a child
//! ```
//! A child's streams are its parent's, which nobody reads: they are forgotten, their programs run on with their output
//! discarded and their input open but silent, and unfinished uploads and downloads end. The new connection counts its
//! streams from 1 again. No Hello comes: the parent has said it.
//!
//! Knows bytes and shapes. Knows no socket, process or file.
//!
//! Always true:
//! - Nothing is dropped. Who sends `Input`, `Output` or `ErrorOutput` first spends credit, a byte for a
//!   byte; each stream starts with [`INITIAL_CREDIT`] in each direction (both outputs share one), and the
//!   receiver grants more as it consumes. `Request`, `Reply`, `Control`, `Credit` and the
//!   frames of stream 0 cost nothing.
//! - Exactly one `Reply` with LAST ends a stream, after all of its output. Stream ids are not reused
//!   within a connection. A frame for a closed stream is ignored: it crossed the end on the wire.
//! - Each `Freeze` is answered by one `Frozen`, however late. A `Freeze` to a frozen guest and a `Thaw` to one that is not
//!   are ignored, and so is a `Frozen` that nobody asked for.
//! - A frame that does not parse ends the connection: a length-prefixed stream cannot be resynchronised.

mod frame;
mod messages;

pub use frame::{Header, HeaderError, Kind, LAST, MAX_BODY_BYTES, StreamId};
pub use messages::{
    Control, DirEntry, Disk, ErrorCode, ExecFile, ExecRequest, GuestFailure, Hello, Identity, Network, Origin, Renewal,
    Reply, Request, SuperviseRequest, TerminalSize,
};

/// Raised when a frame or a request changes. Both ends ship together, but the kit may have been made before this program.
pub const PROTOCOL_VERSION: u32 = 4;

/// Name of the virtio-serial port, as `/sys/class/virtio-ports/*/name` shows it in the guest.
pub const PORT_NAME: &str = "iii.guest";

/// Bytes each side may send on a stream before the other has granted more.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// Data frames are cut to this, so that one stream cannot hold the wire for long.
pub const DATA_CHUNK_BYTES: usize = 32 * 1024;
