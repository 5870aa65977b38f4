//! `configuration`: settings by id, checked against their schemas.
//!
//! ```text
//! configuration::* ─► Configuration ─┬─ Folder   a YAML file per entry, watched for edits by hand
//!                          │         └─ Remote   another engine's
//!                          ├─► functions bound to the `configuration` trigger type
//!                          └─► changes()   for the engine: other built-in workers' settings
//! ```
//! Values are stored as they were written: `${NAME:default}` in them is expanded when they are read. How placeholders are
//! found and saved files noticed is the engine's way with config.yaml, too. Knows no other worker.
//!
//! Always true:
//! - What `register` or `set` acknowledged is on disk, whole: a file is replaced by a rename.
//! - A value that its schema refuses is never stored. One that a person wrote into a file is taken as it is, with a
//!   warning: the file is theirs.

mod entry;
mod events;
mod folder;
mod placeholder;
mod remote;
mod schema;
mod watch;
mod worker;

pub use entry::Entry;
pub use placeholder::{Placeholder, replace_placeholders};
pub use schema::check;
pub use watch::FolderWatch;
pub use worker::{Configuration, NAME, create, schema};
