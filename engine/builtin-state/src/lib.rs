//! `iii-state`: values by scope and key, and functions that are called when one changes.
//!
//! ```text
//! state::set, update, .. ─► State ─► Adapter: kv (a file), redis, bridge (another engine)
//!                             │ a slot per write, in the order of the writes
//!                             └──► Events ── a lane per binding and key ─► handlers of the trigger type `state`
//! ```
//! Knows values as JSON text, which is only parsed for an update. Knows no connection of a worker.
//!
//! Always true:
//! - A write is answered when its adapter has it: with `kv`, when it is on disk.
//! - Events of one key reach a handler one after another, in the order of the writes; those of several keys overlap. No
//!   write waits for them.
//! - What waits for slow handlers is bounded, for a key, a binding, a VM's worker and for all; beyond that, events are
//!   lost, and the log says so. A handler is waited for 60 s at most.
//! - No value is larger than 15 MiB, and no name longer than [`engine_builtin::MAX_NAME_BYTES`].

mod adapter;
mod events;
mod functions;
mod settings;
mod state;

pub use settings::schema;
pub use state::create;

/// As in config.yaml.
pub const NAME: &str = "iii-state";

/// The type of the triggers that fire when a value changes.
pub const TRIGGER_TYPE: &str = "state";
