//! Decides, from one input, which messages go where.
//!
//! ```text
//! Input ─► Router::step ─┬─ invoke      calls and their answers
//!                        ├─ triggers    trigger types and their bindings
//!                        ├─ discovery   engine::* functions
//!                        ├─ guests      what workers in VMs may not do
//!                        ├─ session     what workers of a guarded listener may do
//!                        ├─ limits      how much a connection may register
//!                        ├─ counts      how many calls, and how long they took
//!                        ├─ forgotten   calls that nobody waits for, and that may still be answered
//!                        └─ leave       what goes when a connection goes
//!                             └─► Effects
//! ```
//! Knows messages and connections by number. Knows no socket, clock or configuration: its manifest has no runtime.
//!
//! Always true:
//! - Each accepted call that asked for an answer gets exactly one, unless its caller has left.
//! - Only the connection that a call was sent to can answer it. No two calls that it has not answered have one id,
//!   whoever still waits for them.
//! - A worker in a VM neither changes what runs on the host nor stands in for those who do.
//! - What a connection can leave in memory is bounded, calls in flight excepted.
//! - What has moved to a newer connection is not removed by the late end of an older one.

mod counts;
mod discovery;
mod forgotten;
mod guests;
mod invoke;
mod leave;
mod limits;
mod router;
mod session;
mod triggers;

pub use counts::Counts;
pub use router::{ConnId, Effect, Gauges, Input, Installed, Opened, Router};
pub use session::{Expose, Pattern, Policy, Session, Wanted};
