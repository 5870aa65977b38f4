//! Durable tables of bytes: what an acknowledged write has stored is there after `kill -9`.
//!
//! ```text
//! write(change) ─► queue ─► writer thread ── many changes, one transaction, one fsync ─► file
//!        ◄──────────────── answered when it is on disk ──┘
//! read(look) ─► a snapshot of what is on disk; waits for nobody
//! ```
//! Knows keys, values and one file. Knows no worker.
//!
//! Always true:
//! - Changes are applied one after another, in the order they were handed over; a change sees those before it.
//! - A change is answered after it was synced to disk, never before. All of it is stored, or nothing.
//! - After a failed write (a full disk, say) the store opens its file anew: the next write may succeed.

mod key;
mod store;
mod transaction;

pub use key::{first_part, key, prefix_end};
pub use store::{Store, StoreError};
pub use transaction::{Reading, Table, Writing};
