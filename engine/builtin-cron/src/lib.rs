//! `iii-cron`: calls functions at given times.
//!
//! ```text
//! trigger `cron` ─► bind ─► job, a task: waits for its next time ─► lock ─► condition ─► function ─┐
//!                                      ▲                                                           │
//!                                      └────────────────── only then the next time ────────────────┘
//! ```
//! Knows expressions, a clock and locks. Knows no socket, and nothing of what it calls.
//!
//! Always true:
//! - A job runs once at a time: in this engine, and with the `redis` adapter in all engines that share the Redis.
//! - Times that pass while a function runs, or while the machine sleeps, are not made up for: the job runs once.
//! - A job that is replaced or removed is not interrupted; it only never begins again.
//! - A wall clock that is set is noticed within [`MAX_SLEEP`].

mod clock;
mod expression;
mod job;
mod lock;
mod redis_lock;
mod settings;
mod worker;

pub use job::MAX_SLEEP;
pub use settings::schema;
pub use worker::{NAME, create};
