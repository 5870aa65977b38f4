//! What a built-in worker may ask of the engine.

use std::sync::Arc;

use engine_protocol::ChannelRef;
use futures_util::future::BoxFuture;

use crate::Raw;
use crate::call::{Answer, Trace};
use crate::pipe::{PipeReader, PipeWriter};

/// A call that a built-in worker makes.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub function_id: String,
    pub data: Raw,
    pub trace: Trace,
}

/// Counts since the engine's start.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub calls: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Handed to a queue.
    pub deferred: u64,
    /// Calls of each function, the busiest first; bounded.
    pub by_function: Vec<(String, u64)>,
    /// How long calls took: for each number of microseconds, how many calls took at most as long and longer than the
    /// number before.
    pub durations_us: Vec<(u64, u64)>,
    pub workers_connected: u64,
    pub workers_left: u64,
    pub workers_now: u64,
}

/// The engine, as built-in workers know it.
pub trait EngineApi: Send + Sync {
    /// Calls a function and waits for its answer, for as long as that takes; dropping the future forgets the call.
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer>;

    /// Whether a function of this id can be called now. Takes the router's lock: never with one of your own held that
    /// `bind` or `unbind` takes.
    fn knows(&self, function_id: &str) -> bool;

    /// A channel that a worker reads and we write. `items` may lie in it before its writer has to wait.
    fn pipe_to_worker(&self, items: usize) -> (PipeWriter, ChannelRef);

    /// A channel that a worker writes and we read.
    fn pipe_from_worker(&self, items: usize) -> (ChannelRef, PipeReader);

    /// Takes back a channel of ours whose other end nobody has attached, so that it does not wait for that. One that is
    /// attached goes on to its end.
    fn withdraw(&self, channel: &ChannelRef);

    fn stats(&self) -> Stats;

    /// The engine's version.
    fn version(&self) -> &'static str;
}

pub type Engine = Arc<dyn EngineApi>;
