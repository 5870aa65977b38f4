//! Every frame host and guest exchange, and their limits.
//!
//! ```text
//! host (guest-client)  ──── one byte stream: a virtio-serial port named PORT_NAME ────  guest (guest-init)
//!
//!   stream 0     Hello, then nothing: the guest says that it is up
//!   stream n>0   opened by the host with Request; then, in any interleaving:
//!                  host → guest  Input (the last one has LAST), Control, Credit
//!                  guest → host  Output, ErrorOutput, Reply, Credit
//!                closed by the one guest → host Reply that has LAST
//! ```
//! Knows bytes and shapes. Knows no socket, process or file.
//!
//! Always true:
//! - Nothing is dropped. Who sends `Input`, `Output` or `ErrorOutput` first spends credit, a byte for a
//!   byte; each stream starts with [`INITIAL_CREDIT`] in each direction (both outputs share one), and the
//!   receiver grants more as it consumes. `Request`, `Reply`, `Control`, `Credit` and `Hello` cost nothing.
//! - Exactly one `Reply` with LAST ends a stream, after all of its output. Stream ids are not reused
//!   within a connection. A frame for a closed stream is ignored: it crossed the end on the wire.
//! - A frame that does not parse ends the connection: a length-prefixed stream cannot be resynchronised.

mod frame;
mod messages;

pub use frame::{Header, HeaderError, Kind, LAST, MAX_BODY_BYTES, StreamId};
pub use messages::{
    Control, DirEntry, Disk, ErrorCode, ExecFile, ExecRequest, GuestFailure, Hello, Identity, Network, Reply, Request,
    SuperviseRequest, TerminalSize,
};

/// Raised when a frame or a request changes. Both ends ship together, but the kit may have been made before this program.
pub const PROTOCOL_VERSION: u32 = 2;

/// Name of the virtio-serial port, as `/sys/class/virtio-ports/*/name` shows it in the guest.
pub const PORT_NAME: &str = "iii.guest";

/// Bytes each side may send on a stream before the other has granted more.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// Data frames are cut to this, so that one stream cannot hold the wire for long.
pub const DATA_CHUNK_BYTES: usize = 32 * 1024;
