//! Gives the router sockets, a clock and a configuration.
//!
//! ```text
//! TCP listener(s) ────────┐                        ┌─ hub: Router behind one lock, a queue per connection
//! Unix listener ─► vms ───┴─► server ─► peer ──────┤
//!   (our VMs)                   └─► channels       └─ children: the two daemons
//! ```
//! Knows sockets, processes and `config.yaml`. What goes where is the router's business.
//!
//! Always true:
//! - The router's lock is never held across an await; queueing a message never waits.
//! - A peer that does not read for long loses its connection, and nobody else notices.
//! - Every child has a lifeline: it ends when the engine ends, however that comes about.

mod access;
mod builtins;
mod channels;
mod children;
mod config;
mod frames;
mod handle;
mod hub;
mod listener;
mod live;
mod logging;
mod peer;
mod pressure;
mod progress;
mod reload;
mod server;
mod sys;
mod upgrade;
mod vms;
mod weight;

pub use config::{Config, ConfigError};
pub use live::{EngineError, serve};
pub use logging::Logging;

/// What `--version` prints, and workers see.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
