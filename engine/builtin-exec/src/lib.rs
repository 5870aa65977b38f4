//! `iii-exec`: shell commands that run beside the engine.
//!
//! ```text
//! config.yaml ─► pipeline ─► run ─┬─ sh -c "npm ci"      a session each, one after another
//!                   ▲             ├─ sh -c "npm start"   the last one stays
//!      files ─► watch             └─ guard               kills them when the engine is gone
//! ```
//! Knows processes and files. Knows nothing of what the commands do.
//!
//! Always true:
//! - No process of a command outlives its run, nor the engine, even one ended by `kill -9`; unless it has left its process
//!   group.
//! - A group is only killed while its first process has not been reaped: its number is nobody else's.
//! - A command that fails stops the pipeline, and the end of the last one is its end. Only a watched file that changes
//!   starts it again.

mod glob;
mod group;
mod guard;
mod pipeline;
mod run;
mod settings;
mod sys;
mod watch;
mod worker;

pub use settings::schema;
pub use worker::{NAME, create};
