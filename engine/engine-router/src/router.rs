//! What the router knows, and the one door to change it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use engine_protocol::{
    ErrorBody, InvocationResult, InvokeFunction, Message, Payload, RegisterFunction, RegisterTrigger,
    RegisterTriggerType, WorkerRegistered, is_builtin,
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::counts::Counts;
use crate::forgotten::Forgotten;
use crate::limits::{Held, Weight};
use crate::session::Session;
use crate::triggers::{Trigger, TriggerType};

/// Room that is kept from one step to the next.
const MAX_KEPT_EFFECTS: usize = 64;

/// Names one connection for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    Opened(Box<Opened>),
    /// A worker in the engine's own process.
    Installed(Box<Installed>),
    Closed {
        conn: ConnId,
    },
    Received {
        conn: ConnId,
        message: Message,
    },
    /// The answer to [`Effect::CreateChannel`].
    ChannelCreated {
        conn: ConnId,
        invocation: Option<Uuid>,
        refs: Result<Box<RawValue>, ErrorBody>,
    },
    /// A call of the engine itself, or of a built-in worker. `answer` names what [`Effect::Answered`] is to bring.
    Call {
        call: Box<InvokeFunction>,
        answer: Option<Uuid>,
    },
    /// Nobody waits for this answer any more.
    Forget {
        answer: Uuid,
    },
    /// From time to time: lets changes of the function list be told.
    Tick,
}

/// A new connection.
#[derive(Debug)]
pub struct Opened {
    pub conn: ConnId,
    /// The worker's id, made by the caller: the router draws no random numbers.
    pub worker: Uuid,
    /// Secret with which the worker may later retire this connection.
    pub reattach_token: String,
    /// Set for connections from our own VMs: the name is the VM's, whatever the worker says.
    pub vm_worker: Option<String>,
    pub isolation: Option<String>,
    pub address: Option<String>,
    pub session: Session,
}

/// A new built-in worker.
#[derive(Debug)]
pub struct Installed {
    pub conn: ConnId,
    pub worker: Uuid,
    pub name: &'static str,
    pub functions: Vec<RegisterFunction>,
    pub trigger_types: Vec<RegisterTriggerType>,
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    Send {
        conn: ConnId,
        message: Message,
        /// Of a call by a worker: its id, which the handler is to see in the payload.
        caller: Option<Uuid>,
    },
    /// A built-in worker is to carry out a call; its answer comes back as a message from `conn`.
    Call {
        conn: ConnId,
        call: Box<InvokeFunction>,
        caller: Option<Uuid>,
    },
    /// A function that is an HTTP request is called; its answer comes back as a message from `conn`.
    Request {
        conn: ConnId,
        call: Box<InvokeFunction>,
        caller: Option<Uuid>,
    },
    /// One of a built-in worker's trigger types is bound; a refusal comes back as a message from `conn`.
    Bind {
        conn: ConnId,
        trigger: RegisterTrigger,
        owner: Option<Uuid>,
        /// Of a worker in one of our VMs: its name.
        vm: Option<String>,
    },
    Unbind {
        conn: ConnId,
        trigger_type: String,
        id: String,
    },
    /// The answer to [`Input::Call`].
    Answered {
        answer: Uuid,
        result: Result<Option<Payload>, ErrorBody>,
    },
    CreateChannel {
        conn: ConnId,
        invocation: Option<Uuid>,
        buffer: usize,
    },
    Close {
        conn: ConnId,
    },
    /// A registration that the protocol cannot answer was refused: a line for the log.
    Refused {
        conn: ConnId,
        error: ErrorBody,
    },
}

/// One worker's connection.
pub(crate) struct Connection {
    pub(crate) worker: Uuid,
    pub(crate) reattach_token: String,
    pub(crate) vm_worker: Option<String>,
    pub(crate) isolation: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) connected_at_ms: u64,
    pub(crate) metadata: Option<Metadata>,
    /// Whether something but `reattach` has arrived: only the first message may be one.
    pub(crate) spoken: bool,
    pub(crate) held: Held,
    /// Its calls that are not answered yet.
    pub(crate) in_flight: usize,
    /// What the engine has told it of itself, and it has not answered yet.
    pub(crate) news: usize,
    pub(crate) session: Session,
    /// Set for built-in workers.
    pub(crate) builtin: Option<&'static str>,
}

/// What a worker says about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) runtime: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) os: Option<String>,
    pub(crate) pid: Option<u64>,
    pub(crate) isolation: Option<String>,
}

pub(crate) struct Provider {
    pub(crate) conn: ConnId,
    pub(crate) function: RegisterFunction,
}

/// A call that is with its executor.
pub(crate) struct Pending {
    pub(crate) executor: ConnId,
    /// The connection whose call it is.
    pub(crate) from: Option<ConnId>,
    /// Who wants the answer; nobody, for void calls.
    pub(crate) caller: Option<Caller>,
    /// As its caller knows it.
    pub(crate) function_id: String,
    pub(crate) since_us: u64,
}

impl Pending {
    /// Nobody has made it but the engine, and nobody waits for it.
    pub(crate) fn is_news(&self) -> bool {
        self.from.is_none() && self.caller.is_none()
    }
}

/// Who wants an answer, and under which id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Worker(ConnId, Uuid),
    Engine(Uuid),
}

/// What a worker, by its id, last told of its memory and processor time.
pub type Gauges = Box<dyn Fn(Uuid) -> Option<serde_json::Value> + Send>;

/// The routing table, without IO.
pub struct Router {
    pub(crate) now_us: u64,
    pub(crate) version: String,
    /// A secret, and how many ids were made of it.
    id_seed: u128,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    /// Live providers of each function, newest last.
    pub(crate) functions: BTreeMap<String, Vec<Provider>>,
    pub(crate) pending: HashMap<Uuid, Pending, ahash::RandomState>,
    pub(crate) forgotten: Forgotten,
    /// Live providers of each type, newest last.
    pub(crate) trigger_types: BTreeMap<String, Vec<TriggerType>>,
    pub(crate) triggers: BTreeMap<String, Trigger>,
    pub(crate) announced: HashSet<String>,
    pub(crate) counts: Counts,
    pub(crate) gauges: Option<Gauges>,
    /// Functions that decide on others: guests do not offer them.
    pub(crate) protected: HashSet<String>,
    /// Whether a function has come or gone since the list was last told.
    pub(crate) functions_changed: bool,
    pub(crate) effects: Vec<Effect>,
}

impl Router {
    /// `seed` is random: the ids of calls that the engine itself makes follow from it.
    #[must_use]
    pub fn new(version: &str, seed: u128) -> Self {
        Self {
            now_us: 0,
            version: version.to_owned(),
            id_seed: seed,
            connections: BTreeMap::new(),
            functions: BTreeMap::new(),
            pending: HashMap::default(),
            forgotten: Forgotten::default(),
            trigger_types: BTreeMap::new(),
            triggers: BTreeMap::new(),
            announced: HashSet::new(),
            counts: Counts::default(),
            gauges: None,
            protected: HashSet::new(),
            functions_changed: true,
            effects: Vec::new(),
        }
    }

    /// Where `engine::workers::info` has its `latest_metrics` from. It is asked in the middle of a step.
    pub fn set_gauges(&mut self, gauges: Option<Gauges>) {
        self.gauges = gauges;
    }

    /// The functions that listeners ask: who may come in, what may be registered.
    pub fn protect(&mut self, functions: HashSet<String>) {
        self.protected = functions;
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether a function of this id can be called.
    #[must_use]
    pub fn knows(&self, function_id: &str) -> bool {
        self.functions.contains_key(function_id)
    }

    /// Workers that are connected, built-in ones not counted.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.connections.values().filter(|connection| connection.builtin.is_none()).count()
    }

    /// Calls that are with their executors.
    #[must_use]
    pub fn calls_in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Advances by one input. Reads no clock and does no IO: `now_us` (since 1970) comes in, effects go out.
    pub fn step(&mut self, now_us: u64, input: Input) -> Vec<Effect> {
        self.now_us = now_us;
        match input {
            Input::Opened(opened) => self.open(*opened),
            Input::Installed(installed) => self.install(*installed),
            Input::Closed { conn } => self.leave(conn),
            Input::Received { conn, message } => self.receive(conn, message),
            Input::ChannelCreated { conn, invocation, refs } => {
                self.answer(conn, invocation, "engine::channels::create", refs.map(Some));
            }
            Input::Call { call, answer } => self.call(call, answer),
            Input::Forget { answer } => self.forget(answer),
            Input::Tick => self.announce_functions(),
        }
        std::mem::take(&mut self.effects)
    }

    /// Gives back what [`step`](Self::step) returned, when it is carried out, so that the next step allocates nothing.
    pub fn reuse(&mut self, mut effects: Vec<Effect>) {
        effects.clear();
        effects.shrink_to(MAX_KEPT_EFFECTS);
        self.effects = effects;
    }

    fn open(&mut self, opened: Opened) {
        let Opened { conn, worker, reattach_token, vm_worker, isolation, address, session } = opened;
        let registered = WorkerRegistered { worker_id: worker, reattach_token: Some(reattach_token.clone()) };
        let connection = Connection {
            worker,
            reattach_token,
            vm_worker,
            isolation,
            address,
            connected_at_ms: self.now_us / 1000,
            metadata: None,
            spoken: false,
            held: Held::default(),
            in_flight: 0,
            news: 0,
            session,
            builtin: None,
        };
        self.connections.insert(conn, connection);
        self.counts.workers_connected += 1;
        self.send(conn, Message::WorkerRegistered(registered));
        self.announce_worker("worker_connected", worker);
    }

    fn install(&mut self, installed: Installed) {
        let Installed { conn, worker, name, functions, trigger_types } = installed;
        let connection = Connection {
            worker,
            reattach_token: String::new(),
            vm_worker: None,
            isolation: Some("in-process".to_owned()),
            address: None,
            connected_at_ms: self.now_us / 1000,
            metadata: None,
            // Built-in workers do not reattach.
            spoken: true,
            held: Held::default(),
            in_flight: 0,
            news: 0,
            session: Session::default(),
            builtin: Some(name),
        };
        self.connections.insert(conn, connection);
        self.functions_changed = true;
        for function in functions {
            self.functions.entry(function.id.clone()).or_default().push(Provider { conn, function });
        }
        for kind in trigger_types {
            self.register_trigger_type(conn, kind);
        }
    }

    fn receive(&mut self, conn: ConnId, message: Message) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let first = !std::mem::replace(&mut connection.spoken, true);
        match message {
            Message::InvokeFunction(call) => self.invoke(conn, call),
            Message::InvocationResult(result) => self.result(conn, result),
            Message::RegisterFunction(function) => self.register_function(conn, *function),
            Message::UnregisterFunction(function) => self.unregister_function(conn, &function.id),
            Message::RegisterTriggerType(kind) => self.register_trigger_type(conn, kind),
            Message::UnregisterTriggerType(kind) => self.unregister_trigger_type(conn, &kind.id),
            Message::RegisterTrigger(trigger) => self.register_trigger(conn, *trigger),
            Message::UnregisterTrigger(trigger) => self.unregister_trigger(conn, &trigger.id),
            Message::TriggerRegistrationResult(result) => self.trigger_result(conn, *result),
            Message::Reattach(reattach) if first => self.reattach(conn, &reattach),
            Message::Ping => self.send(conn, Message::Pong),
            // Of no meaning from a worker, or of none any more.
            Message::Reattach(_)
            | Message::WorkerRegistered(_)
            | Message::RegisterService
            | Message::Pong
            | Message::Error(_) => {}
        }
    }

    fn register_function(&mut self, conn: ConnId, function: RegisterFunction) {
        let Some(function) = self.under_policy(conn, function) else { return };
        // The engine's own functions are what RBAC, daemons and SDKs stand on: nobody takes them over.
        let namespace = function.id.split("::").next().unwrap_or_default();
        let reserved = namespace.is_empty() || namespace == "engine" || is_builtin(namespace);
        if reserved || self.refuse_registration(conn, &function.id) {
            return;
        }
        let own = |provider: &&Provider| provider.conn == conn;
        let before = self.functions.get(&function.id).and_then(|providers| providers.iter().find(own));
        let before = before.map(|provider| provider.function.bytes());
        if let Err(error) = self.make_room(conn, before, &function) {
            return self.refuse(conn, error);
        }
        self.functions_changed = true;
        let providers = self.functions.entry(function.id.clone()).or_default();
        providers.retain(|provider| provider.conn != conn);
        providers.push(Provider { conn, function });
    }

    fn unregister_function(&mut self, conn: ConnId, id: &str) {
        let id = &self.prefixed(conn, id.to_owned());
        let Some(providers) = self.functions.get_mut(id) else { return };
        let Some(at) = providers.iter().position(|provider| provider.conn == conn) else { return };
        let gone = providers.remove(at);
        if providers.is_empty() {
            self.functions.remove(id);
            self.functions_changed = true;
        }
        self.give_back(conn, &gone.function);
    }

    pub(crate) fn send(&mut self, conn: ConnId, message: Message) {
        self.effects.push(Effect::Send { conn, message, caller: None });
    }

    /// Answers a caller that wants an answer and is still there.
    pub(crate) fn answer(
        &mut self,
        conn: ConnId,
        invocation: Option<Uuid>,
        function_id: &str,
        result: Result<Option<Box<RawValue>>, ErrorBody>,
    ) {
        let Some(invocation_id) = invocation else { return };
        if !self.connections.contains_key(&conn) {
            return;
        }
        let (result, error) = match result {
            Ok(result) => (result, None),
            Err(error) => (None, Some(error)),
        };
        self.send(
            conn,
            Message::from(InvocationResult {
                invocation_id,
                function_id: function_id.to_owned(),
                result: result.map(Payload::from),
                error,
                traceparent: None,
                baggage: None,
            }),
        );
    }

    /// An id that callers cannot foresee, since it is a hash of a secret: else one could be using the next ones.
    pub(crate) fn fresh_id(&mut self) -> Uuid {
        self.id_seed = self.id_seed.wrapping_add(1);
        let half = |which: u8| {
            let mut hasher = DefaultHasher::new();
            (self.id_seed, which).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        uuid::Builder::from_random_bytes((half(0) << 64 | half(1)).to_be_bytes()).into_uuid()
    }
}
