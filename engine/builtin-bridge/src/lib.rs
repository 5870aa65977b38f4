//! `iii-bridge`: this engine as a worker of another one.
//!
//! ```text
//! bridge.invoke, forward ──► Client ──► other engine ──► its functions
//!              our functions ◄── expose ◄──┘
//! ```
//! Knows which function stands for which on the other side. Knows no payload.
//!
//! Always true:
//! - The other engine can call what `expose` lists, and nothing else.
//! - The connection is made again whenever it is lost, and `expose` said again.
//! - A call that the other engine does not answer ends with its timeout.

mod settings;
mod worker;

pub use settings::schema;
pub use worker::{NAME, create};
