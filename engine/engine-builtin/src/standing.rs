//! Whether a binding is still there, for events that wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Clones are of one binding. One that takes another's place under the same id goes on with its standing: a worker that
/// registers anew misses nothing.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<AtomicBool>);

impl Standing {
    /// It is unbound.
    pub fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
