//! Journeys over the real programs that need no guest. The tests are in `tests/`; here is what several of them do.
//!
//! ```text
//! RawWorker ── any text at all ──► iii-engine ◄── calls, one after another ── Bystander
//! ```

mod bystander;
mod raw_worker;

pub use bystander::Bystander;
pub use raw_worker::{Lost, RawWorker};
