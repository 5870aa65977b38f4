//! What a list of update operations makes of a value: the rules of `state::update` and `stream::update`.
//!
//! ```text
//! ops ─────┐
//!          ├─► apply ─► Outcome { value, errors }
//! value ───┘
//! ```
//! Pure: no clock, no IO. Knows JSON values and operations. Knows no key, no store and no function.
//!
//! Always true:
//! - Operations are applied in order; one that fails leaves the value as it was, and is reported under its index.
//! - A value is changed in place, never copied.

mod apply;
mod op;

pub use apply::{Outcome, apply};
pub use op::{
    MAX_MERGE_DEPTH, MAX_MERGE_KEYS, MAX_PATH_SEGMENTS, MAX_SEGMENT_BYTES, Op, Path, UpdateError, UpdateErrorCode,
};
