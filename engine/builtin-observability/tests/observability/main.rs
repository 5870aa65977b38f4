//! The worker from outside.

mod fake;
mod prometheus;
mod worker;
