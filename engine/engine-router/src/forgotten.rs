//! Calls that nobody waits for any more, and that their executors may still answer: their ids name no other call of the
//! same executor meanwhile, or that one would get their answer.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::router::ConnId;

/// Ids of one executor's calls. When there have been more, it is sent no id any more that a caller has chosen.
const MAX_IDS: usize = 65_536;

/// By executor.
#[derive(Default)]
pub(crate) struct Forgotten(HashMap<ConnId, Ids>);

#[derive(Default)]
struct Ids {
    ids: HashSet<Uuid>,
    /// Whether one had no place: it may be any.
    overflowed: bool,
}

impl Forgotten {
    pub(crate) fn add(&mut self, executor: ConnId, id: Uuid) {
        let Ids { ids, overflowed } = self.0.entry(executor).or_default();
        if ids.len() < MAX_IDS {
            ids.insert(id);
        } else {
            *overflowed = true;
        }
    }

    pub(crate) fn contains(&self, executor: ConnId, id: Uuid) -> bool {
        self.0.get(&executor).is_some_and(|Ids { ids, .. }| ids.contains(&id))
    }

    /// Whether all of this executor's are known.
    pub(crate) fn knows_all(&self, executor: ConnId) -> bool {
        self.0.get(&executor).is_none_or(|Ids { overflowed, .. }| !overflowed)
    }

    /// A result that nobody gets: its id is free again.
    pub(crate) fn answered(&mut self, executor: ConnId, id: Uuid) {
        let Some(Ids { ids, overflowed }) = self.0.get_mut(&executor) else { return };
        ids.remove(&id);
        if ids.is_empty() && !*overflowed {
            self.0.remove(&executor);
        }
    }

    /// An executor goes on with another connection, and may answer there.
    pub(crate) fn moved(&mut self, from: ConnId, to: ConnId) {
        if let Some(ids) = self.0.remove(&from) {
            self.0.insert(to, ids);
        }
    }

    pub(crate) fn left(&mut self, executor: ConnId) {
        self.0.remove(&executor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTOR: ConnId = ConnId(1);
    const OTHER: ConnId = ConnId(2);

    #[test]
    fn an_id_is_remembered_until_its_executor_has_answered_or_left() {
        let mut forgotten = Forgotten::default();
        let [one, two] = [1, 2].map(Uuid::from_u128);
        forgotten.add(EXECUTOR, one);
        forgotten.add(EXECUTOR, two);
        forgotten.answered(OTHER, one);
        assert!(forgotten.contains(EXECUTOR, one) && !forgotten.contains(OTHER, one));
        forgotten.answered(EXECUTOR, one);
        assert!(!forgotten.contains(EXECUTOR, one) && forgotten.contains(EXECUTOR, two));
        forgotten.left(EXECUTOR);
        assert!(forgotten.0.is_empty());
        forgotten.add(EXECUTOR, one);
        forgotten.answered(EXECUTOR, one);
        assert!(forgotten.0.is_empty());
    }

    #[test]
    fn an_executor_that_lost_an_id_stays_marked_until_it_leaves() {
        let mut forgotten = Forgotten::default();
        let ids = || (0..=MAX_IDS).map(|id| Uuid::from_u128(id as u128));
        for id in ids().take(MAX_IDS) {
            forgotten.add(EXECUTOR, id);
        }
        assert!(forgotten.knows_all(EXECUTOR));
        for id in ids() {
            forgotten.add(EXECUTOR, id);
        }
        ids().for_each(|id| forgotten.answered(EXECUTOR, id));
        assert!(!forgotten.knows_all(EXECUTOR), "the lost one may have been answered, or not");
        forgotten.left(EXECUTOR);
        assert!(forgotten.knows_all(EXECUTOR));
    }
}
