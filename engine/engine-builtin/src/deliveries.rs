//! Calls that events cause and nobody waits for, bounded.
//!
//! ```text
//! begin ─► lane ─► binding ─► function ─► vm ──► all ─► under way
//!          (1)     (64)       (128)       (256)  (1024)
//! ```
//! At each gate a delivery waits, in order, for one that has passed it to end. A lane is what of one binding has to come
//! one after another; not every delivery is of one. What a VM's worker has bound has a gate for all of it, and is not
//! counted with what others have bound to the same functions. Beyond what may wait at a gate, a delivery is dropped.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;

use crate::builtin::Binding;

/// What deliveries carry, waiting and under way, in bytes; one that is larger is taken when there is no other.
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// How many deliveries pass a gate and wait at it, and what both may carry, in bytes; one that carries more is taken
/// when there is no other.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub in_flight: usize,
    pub waiting: usize,
    pub bytes: usize,
}

/// Bytes of all are counted by message, however many get it: [`MAX_BYTES`].
const ALL: Limits = Limits { in_flight: 1024, waiting: 32_768, bytes: usize::MAX };

const PER_FUNCTION: Limits = Limits { in_flight: 128, waiting: 4096, bytes: MAX_BYTES / 4 };

/// Half of a function's: one binding leaves room for the others.
pub const PER_BINDING: Limits = Limits { in_flight: 64, waiting: 2048, bytes: MAX_BYTES / 8 };

/// Of all that a VM's worker has bound.
pub const PER_VM: Limits = Limits { in_flight: 256, waiting: 8192, bytes: MAX_BYTES / 4 };

/// Of all that VMs' workers have bound: some is left for the others.
const ALL_VMS: Limits = Limits { in_flight: 768, waiting: 24_576, bytes: MAX_BYTES / 4 * 3 };

pub const PER_LANE: Limits = Limits { in_flight: 1, waiting: 1024, bytes: PER_BINDING.bytes };

/// There are too many deliveries: this one was dropped, and the log says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many deliveries are waiting")]
pub struct Overloaded;

/// Space for what some deliveries carry; clones share it, and the last of them gives it back.
#[derive(Clone)]
pub struct Room {
    bytes: usize,
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Who gets a binding's deliveries.
#[derive(Debug, Clone)]
pub struct Recipient {
    binding: Arc<str>,
    function: Arc<str>,
    vm: Option<Arc<str>>,
}

impl Recipient {
    #[must_use]
    pub fn function_id(&self) -> &str {
        &self.function
    }
}

impl From<&Binding> for Recipient {
    fn from(binding: &Binding) -> Self {
        Self {
            binding: binding.id.as_str().into(),
            function: binding.function_id.as_str().into(),
            vm: binding.vm.as_deref().map(Into::into),
        }
    }
}

/// What deliveries take turns for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Gate {
    /// Of a binding.
    Lane(Arc<str>, Arc<str>),
    Binding(Arc<str>),
    /// And the VM whose worker has bound it, if one has.
    Function(Arc<str>, Option<Arc<str>>),
    Vm(Arc<str>),
    AllVms,
    All,
}

impl Gate {
    fn limits(&self) -> Limits {
        match self {
            Self::Lane(..) => PER_LANE,
            Self::Binding(_) => PER_BINDING,
            Self::Function(..) => PER_FUNCTION,
            Self::Vm(_) => PER_VM,
            Self::AllVms => ALL_VMS,
            Self::All => ALL,
        }
    }
}

/// In the order in which a delivery passes them.
fn gates(to: &Recipient, lane: Option<&str>) -> Arc<[Gate]> {
    let Recipient { binding, function, vm } = to;
    let lane = lane.map(|lane| Gate::Lane(Arc::clone(binding), lane.into()));
    let rest = [Gate::Binding(Arc::clone(binding)), Gate::Function(Arc::clone(function), vm.clone())];
    let vms = vm.iter().flat_map(|vm| [Gate::Vm(Arc::clone(vm)), Gate::AllVms]);
    lane.into_iter().chain(rest).chain(vms).chain([Gate::All]).collect()
}

struct Delivery {
    work: BoxFuture<'static, ()>,
    room: Room,
    claim: Claim,
}

/// Runs deliveries: those of one lane one after another, those of one binding begin in the order they were handed over,
/// and overlap. One that hangs takes no more than its shares from the others. Those not done when this is dropped are
/// dropped, too.
pub struct Deliveries {
    waiting: mpsc::UnboundedSender<Delivery>,
    room: Arc<Semaphore>,
    shares: Arc<Mutex<Shares>>,
    dropped: AtomicU64,
    runner: JoinHandle<()>,
}

impl Deliveries {
    /// Must be called inside a runtime.
    #[must_use]
    pub fn new() -> Self {
        // Bounded by the shares.
        let (waiting, deliveries) = mpsc::unbounded_channel();
        Self {
            waiting,
            room: Arc::new(Semaphore::new(MAX_BYTES)),
            shares: Arc::default(),
            dropped: AtomicU64::new(0),
            runner: tokio::spawn(run(deliveries)),
        }
    }

    /// Space for one message, however many get it.
    ///
    /// # Errors
    /// [`Overloaded`].
    pub fn room(&self, bytes: usize) -> Result<Room, Overloaded> {
        let permits = u32::try_from(bytes.min(MAX_BYTES)).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(permits) {
            Ok(permit) => Ok(Room { bytes, _permit: Arc::new(permit) }),
            Err(_) => Err(self.dropped(None)),
        }
    }

    /// Hands over one delivery. Never waits, and runs nothing of it here. It begins when the one before it in its lane
    /// has ended, if it is of one.
    ///
    /// # Errors
    /// [`Overloaded`]: too many wait, or too many at one of its gates.
    pub fn begin(
        &self,
        to: &Recipient,
        lane: Option<&str>,
        room: Room,
        work: BoxFuture<'static, ()>,
    ) -> Result<(), Overloaded> {
        let claim = Claim::take(&self.shares, gates(to, lane), room.bytes);
        let claim = claim.ok_or_else(|| self.dropped(Some(&to.function)))?;
        self.waiting.send(Delivery { work, room, claim }).map_err(|_| self.dropped(Some(&to.function)))
    }

    /// The first is told, and then each time that their number has doubled.
    fn dropped(&self, function: Option<&str>) -> Overloaded {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            warn!(dropped, function, "deliveries were dropped: their handlers are too slow");
        }
        Overloaded
    }
}

impl Default for Deliveries {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.runner.abort();
    }
}

/// What is waiting at a gate and has passed it.
type Shares = HashMap<Gate, Share>;

#[derive(Default)]
struct Share {
    deliveries: usize,
    bytes: usize,
}

impl Share {
    fn is_full(&self, limits: Limits, bytes: usize) -> bool {
        self.deliveries >= limits.in_flight.saturating_add(limits.waiting)
            || self.bytes.saturating_add(bytes) > limits.bytes
    }
}

/// One delivery's part of each gate's share; given back when this is dropped.
struct Claim {
    shares: Arc<Mutex<Shares>>,
    gates: Arc<[Gate]>,
    bytes: usize,
}

impl Claim {
    fn take(shares: &Arc<Mutex<Shares>>, gates: Arc<[Gate]>, bytes: usize) -> Option<Self> {
        let mut all = lock(shares);
        if gates.iter().any(|gate| all.get(gate).is_some_and(|share| share.is_full(gate.limits(), bytes))) {
            return None;
        }
        for gate in gates.iter() {
            let share = all.entry(gate.clone()).or_default();
            share.deliveries += 1;
            share.bytes += bytes;
        }
        Some(Self { shares: Arc::clone(shares), gates, bytes })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = lock(&self.shares);
        for gate in self.gates.iter() {
            let Some(share) = all.get_mut(gate) else { continue };
            share.deliveries -= 1;
            share.bytes -= self.bytes;
            if share.deliveries == 0 {
                all.remove(gate);
            }
        }
    }
}

fn lock(shares: &Mutex<Shares>) -> MutexGuard<'_, Shares> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deliveries that have begun, and those that wait at a gate.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<Arc<[Gate]>>,
    gates: HashMap<Gate, Busy>,
    /// With how many of their gates they have passed.
    moving: VecDeque<(Delivery, usize)>,
}

#[derive(Default)]
struct Busy {
    in_flight: usize,
    waiting: VecDeque<Delivery>,
}

impl UnderWay {
    fn begin(&mut self, delivery: Delivery) {
        self.moving.push_back((delivery, 0));
        self.advance();
    }

    fn ended(&mut self, gates: &[Gate]) {
        self.leave(gates);
        self.advance();
    }

    /// Takes what moves to the next gate that is closed, or through all of them.
    fn advance(&mut self) {
        while let Some((delivery, passed)) = self.moving.pop_front() {
            let gates = Arc::clone(&delivery.claim.gates);
            let closed = gates[passed..].iter().find(|gate| {
                let busy = self.gates.entry((*gate).clone()).or_default();
                let is_closed = busy.in_flight >= gate.limits().in_flight;
                busy.in_flight += usize::from(!is_closed);
                is_closed
            });
            if let Some(busy) = closed.and_then(|gate| self.gates.get_mut(gate)) {
                busy.waiting.push_back(delivery);
            } else if !self.run(delivery) {
                self.leave(&gates);
            }
        }
    }

    /// Lets the next one through each of these gates, beginning with those who have passed the most.
    fn leave(&mut self, gates: &[Gate]) {
        for (at, gate) in gates.iter().enumerate().rev() {
            let Some(busy) = self.gates.get_mut(gate) else { continue };
            match busy.waiting.pop_front() {
                Some(next) => {
                    let passed = next.claim.gates.iter().position(|its| its == gate).unwrap_or(at) + 1;
                    self.moving.push_back((next, passed));
                }
                None => {
                    busy.in_flight -= 1;
                    if busy.in_flight == 0 {
                        self.gates.remove(gate);
                    }
                }
            }
        }
    }

    /// Its call is made here, behind those before it; the rest is a task's, if it is not done at once.
    fn run(&mut self, delivery: Delivery) -> bool {
        let Delivery { work, room, claim } = delivery;
        // A panic below ends one delivery, not all.
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        if (&mut work).now_or_never().is_some() {
            return false;
        }
        self.tasks.spawn(async move {
            let _ = work.await;
            drop(room);
            Arc::clone(&claim.gates)
        });
        true
    }
}

async fn run(mut waiting: mpsc::UnboundedReceiver<Delivery>) {
    let mut under_way = UnderWay::default();
    loop {
        tokio::select! {
            Some(ended) = under_way.tasks.join_next() => {
                // Nobody aborts one, and panics are caught.
                if let Ok(gates) = ended {
                    under_way.ended(&gates);
                }
            }
            // Cancel safe: nothing is taken out of the channel then.
            next = waiting.recv() => {
                let Some(delivery) = next else { break };
                under_way.begin(delivery);
            }
        }
    }
}

#[cfg(test)]
mod tests;
