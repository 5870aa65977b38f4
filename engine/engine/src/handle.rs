//! The engine, as built-in workers know it.

use std::sync::Arc;

use engine_builtin::{Answer, BoxFuture, ChannelRef, EngineApi, Invocation, PipeReader, PipeWriter, Stats};

use crate::hub::Hub;

pub(crate) struct Handle(pub(crate) Arc<Hub>);

impl EngineApi for Handle {
    fn call(&self, invocation: Invocation) -> BoxFuture<'static, Answer> {
        Box::pin(Arc::clone(&self.0).call(invocation))
    }

    fn knows(&self, function_id: &str) -> bool {
        self.0.knows(function_id)
    }

    fn pipe_to_worker(&self, items: usize) -> (PipeWriter, ChannelRef) {
        self.0.channels.create_for_reader(items)
    }

    fn pipe_from_worker(&self, items: usize) -> (ChannelRef, PipeReader) {
        self.0.channels.create_for_writer(items)
    }

    fn withdraw(&self, channel: &ChannelRef) {
        self.0.channels.withdraw(&channel.channel_id);
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }

    fn version(&self) -> &'static str {
        crate::VERSION
    }
}
