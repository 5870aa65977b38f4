//! VMs that wait, booted, for whoever asks for one like them: where a driver cannot restore a VM, a boot is what a
//! caller would wait for.
//!
//! ```text
//! boot asked ─► one that waits? ─ yes ─► it is given its identity          and a next one is booted meanwhile
//!                    └─ no ─► booted. It was not restored: so the next like it is worth having
//! ```
//! Bounded in memory and in time; nothing of a tenant is in a VM that waits, but its image is attached.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tracing::{debug, info};
use vmm::TemplateUse;

use super::booted::{Booted, Plan};
use super::{BootProgress, Machines, Network, Scratch};

/// A VM that nobody wanted for this long goes.
const WAITS: Duration = Duration::from_secs(300);

/// Of one kind.
const OF_A_KIND: usize = 2;

/// What VMs must have in common to take each other's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    root_disk: PathBuf,
    memory_mib: u32,
    vcpus: u32,
    network: Network,
}

impl Kind {
    /// `None` where a VM is one of a kind: its disk stays, or the engine knows it by name.
    pub(super) fn of(plan: &Plan) -> Option<Self> {
        let nameless = plan.network == Network::None || plan.network == (Network::Open { worker: None });
        (nameless && matches!(plan.scratch, Scratch::Throwaway) && plan.template == TemplateUse::Clone).then(|| Self {
            root_disk: plan.root_disk.clone(),
            memory_mib: plan.memory.mib(),
            vcpus: plan.vcpus.get(),
            network: plan.network.clone(),
        })
    }
}

struct Waiting {
    kind: Kind,
    since: Instant,
    booted: Booted,
}

/// The pool of one daemon.
pub(super) struct Warm {
    limit_mib: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Being booted; they count as if they waited.
    coming: Vec<Kind>,
    closed: bool,
}

impl State {
    fn memory_mib(&self) -> u32 {
        self.waiting.iter().map(|one| one.kind.memory_mib).chain(self.coming.iter().map(|kind| kind.memory_mib)).sum()
    }

    fn count(&self, kind: &Kind) -> usize {
        self.waiting.iter().filter(|one| one.kind == *kind).count()
            + self.coming.iter().filter(|coming| *coming == kind).count()
    }
}

impl Warm {
    /// `limit_mib` bounds the memory of all guests that wait; 0 has none wait.
    pub(super) fn new(limit_mib: u32) -> Self {
        Self { limit_mib, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that waits and still lives.
    pub(super) fn take(&self, kind: &Kind) -> Option<Booted> {
        let mut state = self.state();
        loop {
            let index = state.waiting.iter().position(|one| one.kind == *kind)?;
            let one = state.waiting.swap_remove(index).booted;
            if lives(&one) {
                return Some(one);
            }
        }
    }

    /// Makes room for one more of `kind`, at the cost of those that have waited longest for another.
    fn reserve(&self, kind: &Kind) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        if state.closed || kind.memory_mib > self.limit_mib || state.count(kind) >= OF_A_KIND {
            return None;
        }
        let others: u32 = state.waiting.iter().filter(|one| one.kind != *kind).map(|one| one.kind.memory_mib).sum();
        if state.memory_mib() - others + kind.memory_mib > self.limit_mib {
            return None;
        }
        let mut gone = Vec::new();
        while state.memory_mib() + kind.memory_mib > self.limit_mib {
            let others = state.waiting.iter().enumerate().filter(|(_, one)| one.kind != *kind);
            let (oldest, _) = others.min_by_key(|(_, one)| one.since)?;
            gone.push(state.waiting.swap_remove(oldest));
        }
        state.coming.push(kind.clone());
        Some(gone)
    }

    /// Boots one more of the kind of `plan`, unless there are enough.
    pub(super) fn refill(machines: &Arc<Machines>, plan: &Plan) {
        let Some(kind) = Kind::of(plan) else { return };
        let Some(gone) = machines.warm.reserve(&kind) else { return };
        drop(gone);
        let (machines, mut plan) = (Arc::clone(machines), plan.clone());
        plan.name = "waiting".to_owned();
        tokio::spawn(async move {
            let quiet = |_: BootProgress| {};
            let _turn = machines.turns.take().await;
            let started = async {
                if machines.warm.state().closed {
                    return None;
                }
                let booted = Booted::start(&machines, &plan, &quiet).await.ok()?;
                // What is restored needs no one like it to wait.
                if booted.is_restored() {
                    return None;
                }
                booted.guest.ready().await.ok()?;
                Some(booted)
            };
            let booted = tokio::time::timeout(super::BOOT_PATIENCE, started).await.ok().flatten();
            let mut state = machines.warm.state();
            if let Some(index) = state.coming.iter().position(|coming| *coming == kind) {
                state.coming.swap_remove(index);
            }
            match booted {
                Some(booted) if !state.closed => {
                    info!(memory_mib = kind.memory_mib, driver = booted.driver, "a VM is booted and waits");
                    state.waiting.push(Waiting { kind, since: Instant::now(), booted });
                }
                Some(_) => {}
                // Whoever asks for one will be told why.
                None => debug!("no VM could be booted to wait"),
            }
        });
    }

    /// Lets go of those that nobody wanted for long, and of those that have ended.
    pub(super) fn expire(&self) {
        let gone: Vec<Waiting> =
            self.state().waiting.extract_if(.., |one| one.since.elapsed() > WAITS || !lives(&one.booted)).collect();
        drop(gone);
    }

    /// None waits any more, and none will.
    pub(super) fn close(&self) {
        let gone = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(gone);
    }
}

fn lives(booted: &Booted) -> bool {
    booted.guest.closed().now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(memory_mib: u32) -> Kind {
        Kind { root_disk: "/image".into(), memory_mib, vcpus: 1, network: Network::None }
    }

    #[test]
    fn memory_is_bounded_and_so_is_each_kind() {
        let warm = Warm::new(1024);
        assert!(warm.reserve(&kind(2048)).is_none());
        assert!(warm.reserve(&kind(256)).is_some());
        assert!(warm.reserve(&kind(256)).is_some());
        assert!(warm.reserve(&kind(256)).is_none());
        assert!(warm.reserve(&kind(512)).is_some());
        // Those that are being booted do not make room.
        assert!(warm.reserve(&kind(128)).is_none());
        assert!(Warm::new(0).reserve(&kind(128)).is_none());
    }

    #[test]
    fn a_closed_pool_takes_none() {
        let warm = Warm::new(1024);
        warm.close();
        assert!(warm.reserve(&kind(128)).is_none());
    }
}
