//! What an input made happen, as numbers: an input that makes something new happen is worth mutating.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A set of things that have happened.
#[derive(Debug, Clone, Default)]
pub struct Features(HashSet<u64>);

impl Features {
    /// Notes that `what` has happened.
    pub fn note(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.0.insert(hasher.finish());
    }

    /// Takes those of `other`; says whether there was a new one.
    pub(crate) fn take(&mut self, other: Self) -> bool {
        let before = self.0.len();
        self.0.extend(other.0);
        self.0.len() > before
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}
