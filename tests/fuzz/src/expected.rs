//! The router, and beside it what has to hold after each of its steps.
//!
//! ```text
//! a call ─► answered at once │ handed to an executor ─► answered when that answers or leaves
//!                            └ waits for a channel   ─► answered when that is made
//! ```
//! A caller that leaves, or an engine that forgets, is owed nothing any more. Everything else is owed one answer.

use std::collections::{BTreeSet, HashMap};

use engine_protocol::{Action, Message};
use engine_router::{ConnId, Effect, Input, Router};
use uuid::Uuid;

/// Who is owed an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Worker(ConnId, Uuid),
    Engine(Uuid),
}

/// A call that is with its executor.
struct Handed {
    executor: ConnId,
    /// The connection that has made it; none for the engine.
    from: Option<ConnId>,
    caller: Option<Caller>,
}

/// The call that a step is about.
struct Asked {
    /// Until it is answered or handed on.
    caller: Option<Caller>,
    /// Refusals are told even to those who asked for no answer.
    refusable: Option<ConnId>,
    /// Of the engine's own functions: what is handed on then is what it told others of, not the call.
    is_own: bool,
}

/// A channel that a worker is to get.
pub(crate) struct Channel {
    pub(crate) conn: ConnId,
    pub(crate) invocation: Option<Uuid>,
}

pub(crate) struct Expected {
    pub(crate) router: Router,
    now_us: u64,
    workers: BTreeSet<ConnId>,
    builtins: BTreeSet<ConnId>,
    handed: HashMap<Uuid, Handed>,
    /// What executors have not answered, whether or not anybody waits for it: under its id there is no other.
    open: BTreeSet<(Uuid, ConnId)>,
    channels: Vec<Channel>,
    /// Answers that this step has to bring.
    due: Vec<Caller>,
    asked: Option<Asked>,
}

impl Expected {
    pub(crate) fn new() -> Self {
        Self {
            router: Router::new("0", 7),
            now_us: 0,
            workers: BTreeSet::new(),
            builtins: BTreeSet::new(),
            handed: HashMap::new(),
            open: BTreeSet::new(),
            channels: Vec::new(),
            due: Vec::new(),
            asked: None,
        }
    }

    /// Calls that can be answered, and by whom; always in the same order.
    pub(crate) fn under_way(&self) -> Vec<(Uuid, ConnId)> {
        self.open.iter().copied().collect()
    }

    pub(crate) fn next_channel(&mut self) -> Option<Channel> {
        self.channels.pop()
    }

    /// One step, and what it led to, each by a word.
    ///
    /// # Panics
    /// When it led to something else than it should.
    pub(crate) fn step(&mut self, input: Input) -> Vec<&'static str> {
        self.now_us += 1;
        self.foresee(&input);
        let from = if let Input::Received { conn, .. } = &input { Some(*conn) } else { None };
        let effects = self.router.step(self.now_us, input);
        for effect in &effects {
            // Somebody has reattached: what it has left behind is gone by then.
            if let Effect::Close { conn } = effect {
                assert!(self.workers.contains(conn), "{conn:?} is closed and not there");
                // It may answer on its new connection what it was asked on the old one.
                let asked: Vec<Uuid> = self.open.iter().filter(|(_, of)| of == conn).map(|(id, _)| *id).collect();
                self.leaves(*conn);
                if let Some(from) = from {
                    self.open.extend(asked.into_iter().map(|id| (id, from)));
                }
            }
        }
        let words = effects.into_iter().map(|effect| self.check(effect)).collect();
        assert_eq!(self.due, [], "answers that did not come");
        if let Some(asked) = self.asked.take() {
            assert_eq!(asked.caller, None, "neither answered nor handed on");
        }
        assert_eq!(self.router.calls_in_flight(), self.handed.len());
        assert_eq!(self.router.workers(), self.workers.len());
        words
    }

    /// Before a step: what it has to lead to.
    fn foresee(&mut self, input: &Input) {
        match input {
            Input::Opened(opened) => drop(self.workers.insert(opened.conn)),
            Input::Installed(installed) => drop(self.builtins.insert(installed.conn)),
            Input::Closed { conn } => self.leaves(*conn),
            Input::Received { conn, message } if self.is_there(*conn) => self.foresee_message(*conn, message),
            Input::ChannelCreated { conn, invocation, .. } => {
                let caller = invocation.map(|id| Caller::Worker(*conn, id));
                let caller = caller.filter(|caller| self.waits(caller));
                self.due.extend(caller);
            }
            Input::Call { answer, .. } => {
                self.asked = Some(Asked { caller: answer.map(Caller::Engine), refusable: None, is_own: false });
            }
            Input::Forget { answer } => self.handed.retain(|_, handed| handed.caller != Some(Caller::Engine(*answer))),
            Input::Received { .. } | Input::Tick => {}
        }
    }

    fn foresee_message(&mut self, conn: ConnId, message: &Message) {
        match message {
            Message::InvokeFunction(call) => {
                let is_queued = matches!(call.action, Some(Action::Enqueue { .. }));
                let is_own = call.function_id.starts_with("engine::") && !is_queued;
                let wants_answer = call.action != Some(Action::Void);
                let caller = call.invocation_id.filter(|_| wants_answer).map(|id| Caller::Worker(conn, id));
                self.asked = Some(Asked { caller, refusable: Some(conn), is_own });
            }
            Message::InvocationResult(result) => {
                self.open.remove(&(result.invocation_id, conn));
                let is_its_own = self.handed.get(&result.invocation_id).is_some_and(|handed| handed.executor == conn);
                if is_its_own {
                    let handed = self.handed.remove(&result.invocation_id);
                    let caller = handed.and_then(|handed| handed.caller).filter(|caller| self.waits(caller));
                    self.due.extend(caller);
                }
            }
            _ => {}
        }
    }

    fn is_there(&self, conn: ConnId) -> bool {
        self.workers.contains(&conn) || self.builtins.contains(&conn)
    }

    fn waits(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Worker(conn, _) => self.workers.contains(conn),
            Caller::Engine(_) => true,
        }
    }

    fn leaves(&mut self, conn: ConnId) {
        self.workers.remove(&conn);
        self.builtins.remove(&conn);
        self.open.retain(|(_, executor)| *executor != conn);
        let (left, stays): (HashMap<_, _>, _) =
            std::mem::take(&mut self.handed).into_iter().partition(|(_, handed)| handed.executor == conn);
        let callers = left.into_values().filter_map(|handed| handed.caller);
        let waiting: Vec<Caller> = callers.filter(|caller| self.waits(caller)).collect();
        self.due.extend(waiting);
        self.handed = stays;
        self.handed.retain(|_, handed| handed.from != Some(conn));
    }

    fn check(&mut self, effect: Effect) -> &'static str {
        match effect {
            Effect::Send { conn, message, .. } => {
                assert!(self.workers.contains(&conn), "{message:?} is sent to {conn:?}, who is not there");
                match message {
                    Message::InvokeFunction(call) => self.is_handed(conn, call.invocation_id),
                    Message::InvocationResult(result) => {
                        let code = result.error.map(|error| error.code);
                        return self.is_answered(Caller::Worker(conn, result.invocation_id), code.as_deref());
                    }
                    _ => {}
                }
                "sent"
            }
            Effect::Call { conn, call, .. } => {
                assert!(self.builtins.contains(&conn), "{call:?} goes to {conn:?}, who is not there");
                self.is_handed(conn, call.invocation_id);
                "called"
            }
            Effect::Request { conn, call, .. } => {
                assert!(self.workers.contains(&conn), "{call:?} is a request of {conn:?}, who is not there");
                self.is_handed(conn, call.invocation_id);
                "requested"
            }
            Effect::Bind { conn, .. } | Effect::Unbind { conn, .. } => {
                assert!(self.builtins.contains(&conn), "{conn:?} is told of a binding and not there");
                "binding"
            }
            Effect::Answered { answer, result } => {
                self.is_answered(Caller::Engine(answer), result.err().map(|error| error.code).as_deref())
            }
            Effect::CreateChannel { conn, invocation, .. } => {
                assert!(self.workers.contains(&conn), "a channel for {conn:?}, who is not there");
                let waiting = self.asked.as_mut().and_then(|asked| asked.caller.take());
                assert_eq!(waiting, invocation.map(|id| Caller::Worker(conn, id)));
                self.channels.push(Channel { conn, invocation });
                "channel"
            }
            Effect::Close { .. } => "closed",
            Effect::Refused { .. } => "refused",
        }
    }

    /// The step's call, or one that the engine makes of its own accord, is with `executor` now.
    fn is_handed(&mut self, executor: ConnId, id: Option<Uuid>) {
        let asked = self.asked.as_mut().filter(|asked| !asked.is_own);
        let (from, caller) = asked.map_or((None, None), |asked| (asked.refusable, asked.caller.take()));
        let id = id.expect("a call that is handed on has an id");
        let before = self.handed.insert(id, Handed { executor, from, caller });
        assert!(before.is_none(), "two calls under way have the id {id}");
        let is_new = self.open.insert((id, executor));
        assert!(is_new, "{executor:?} has another call with the id {id}, which may get the answer to this one");
    }

    fn is_answered(&mut self, caller: Caller, code: Option<&str>) -> &'static str {
        if let Some(at) = self.due.iter().position(|due| *due == caller) {
            self.due.swap_remove(at);
            return if code.is_some() { "failed" } else { "succeeded" };
        }
        let asked = self.asked.as_mut();
        let asked = asked.unwrap_or_else(|| panic!("{caller:?} is answered ({code:?}) and is owed nothing"));
        if asked.caller == Some(caller) {
            asked.caller = None;
            return if code.is_some() { "failed at once" } else { "succeeded at once" };
        }
        let refused = asked.refusable.take();
        let is_refusal =
            matches!(caller, Caller::Worker(conn, _) if refused == Some(conn)) && code == Some("FORBIDDEN");
        assert!(is_refusal && asked.caller.is_none(), "{caller:?} is answered ({code:?}) and is owed nothing");
        "refused unasked"
    }
}
