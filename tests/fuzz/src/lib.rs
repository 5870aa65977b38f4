//! Inputs that nobody wrote: kept ones first, then what mutation makes of them, for a bounded time, on stable Rust.
//!
//! ```text
//! corpus/<target>/* ── replayed ──► target ──► features: what happened, as numbers
//!        └── mutated by a seed ───────▲            │
//!                   ▲                              │
//!                   └── those with a new feature ◄─┘
//! ```
//! A target panics when something does not hold. Knows messages, frames and the router. Knows no socket.
//!
//! Always true:
//! - A run prints its seed and takes it back (`III_TEST_SEED`); what fails is printed and written to a file.
//! - A run ends after `III_FUZZ_SECONDS`, five by default. `III_FUZZ_KEEP=1` keeps new inputs in the corpus.

mod bytes;
mod decode;
mod expected;
mod features;
mod frames;
mod play;
mod run;

pub use decode::decode;
pub use features::Features;
pub use frames::frames;
pub use play::router;
pub use run::run;
