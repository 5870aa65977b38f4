//! The worker `iii-state` as the engine sees it, on each of its adapters.

mod bridge;
mod durable;
mod fake_engine;
mod functions;
mod redis;
mod triggers;
