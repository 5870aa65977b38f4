//! Starts the real programs, for any test.
//!
//! ```text
//! test ── Rig::builder().config(..).start() ──► iii-engine ──► iii-daemon ──► iii-vm ──► guest
//!              │                                    ▲
//!              └── rig.iii(..), rig.trigger(..) ────┘  through the real `iii`
//! ```
//! Each rig has a home of its own; kit, base images, image store and templates are shared between rigs, as they are
//! between the engines of one user. Knows programs and folders. Knows no crate of the house but `engine-client`.
//!
//! Always true:
//! - When a [`Rig`] is dropped, its processes are gone, or the test fails.
//! - A test that lacks something on this machine fails and names it; none is skipped. What a driver cannot do by design
//!   is told ([`supported`]) and stands in the table of drivers.

mod driver;
mod free_port;
mod otlp;
mod processes;
mod prometheus;
mod rabbitmq;
mod redis;
mod registry;
mod rig;
pub mod sdk;
mod view;

pub use driver::{Driver, Feature, supported};
pub use free_port::free_port;
pub use otlp::{OtlpReceiver, OtlpServer, Received, attribute};
pub use processes::{Process, descendants, eventually, kill, wait_gone};
pub use prometheus::Prometheus;
pub use rabbitmq::TestRabbitMq;
pub use redis::TestRedis;
pub use registry::TestRegistry;
pub use rig::{Answer, Rig, RigBuilder, bin_dir, shared_home};
pub use view::KvmDevice;
